"""Partitions, built-in data, and images of other kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from fedtune.errors import ScenarioError
from fedtune.scenario import load_scenario
from fedtune.scenario.clients import PartitionSection
from fedtune.scenario.schema import Scenario
from fedtune.scenario.task import TaskSection
from fedtune.tasks import load
from fedtune.tasks.clients import DealtRows, EvenRows, hold_out
from fedtune.tasks.images import load_images
from fedtune.tasks.load import load_task
from fedtune.tasks.partition import partition
from fedtune.tasks.synthetic import SyntheticImages

LABELS = np.random.default_rng(0).integers(0, 10, 600)
CPU = torch.device("cpu")


def deal(count=12, seed=0, **section):
    return partition(LABELS, PartitionSection(**section), count, seed)


@pytest.mark.parametrize(
    "section",
    [
        {"kind": "iid"},
        {"kind": "dirichlet", "alpha": 0.2},
        {"kind": "pathological", "num_classes_per_partition": 3},
        {"kind": "linear"},
    ],
)
def test_every_example_goes_to_one_client(section):
    parts = deal(**section)
    assert len(parts) == 12
    assert sorted(np.concatenate(parts)) == list(range(600))
    again, other = deal(**section), deal(seed=1, **section)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_iid_is_shuffled_and_pathological_is_not_mixed():
    first = deal(kind="iid")[0]
    assert np.diff(first).max() > 1
    for part in deal(kind="pathological", num_classes_per_partition=2):
        assert len(set(LABELS[part])) == 2


def test_empty_clients_are_kept_but_cannot_be_drawn():
    parts = deal(count=200, kind="dirichlet", alpha=0.02)
    rows = DealtRows(parts)
    empty = [c for c, part in enumerate(parts) if len(part) == 0]
    assert empty
    assert len(rows) == 200
    assert set(rows.eligible) == set(range(200)) - set(empty)


@pytest.mark.parametrize(
    ("section", "count", "said"),
    [
        ({"kind": "iid"}, 601, "clients.count = 601: more clients than the 600"),
        ({"kind": "dirichlet", "alpha": 0.01, "min_partition_size": 55}, 10, "cannot be met"),
        ({"kind": "dirichlet"}, 10, "alpha"),
        ({"kind": "dirichlet", "alpha": -1.0}, 10, "greater than zero"),
        ({"kind": "pathological", "num_classes_per_partition": 11}, 10, "cannot be met"),
        ({"kind": "iid", "alpha": 1.0}, 10, "clients.partition.alpha: unknown key"),
        ({"kind": "pathological", "num_classes_per_partition": "2"}, 10, "cannot be met"),
    ],
)
def test_a_partition_that_cannot_be_met_is_one_line(section, count, said):
    with pytest.raises(ScenarioError, match=said) as error:
        partition(LABELS, PartitionSection(**section), count, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["iid", "natural"])
def test_keys_of_another_partition_are_refused_before_data_are_loaded(monkeypatch, kind):
    monkeypatch.setattr(load, "LOADERS", {})
    changes = {"clients.partition": {"kind": kind, "alpha": 0.1}}
    scenario = load_scenario("quickstart", changes)
    with pytest.raises(
        ScenarioError, match=r"^clients\.partition\.alpha: unknown key; allowed: kind"
    ):
        load_task(scenario, torch.device("cpu"), torch.float32)


def test_holding_out_splits_a_client_and_never_takes_its_last_example():
    train, held = hold_out(np.arange(10, 20), 0.3, 0, 4)
    assert sorted([*train, *held]) == list(range(10, 20))
    assert len(held) == 3
    assert [len(part) for part in hold_out(np.array([5]), 0.5, 0, 1)] == [1, 0]
    assert np.array_equal(hold_out(np.arange(10, 20), 0.3, 0, 4)[1], held)


def test_digits_are_split_the_same_way_every_time():
    examples = load_images(TaskSection())
    assert [len(examples.train), len(examples.test)] == [1437, 360]
    assert set(examples.train.labels) == set(range(10))
    a, b = (
        {image.numpy().tobytes() for image in table.pixels}
        for table in (examples.train, examples.test)
    )
    assert len(a & b) <= 2


def test_synthetic_clients_cost_nothing_until_they_are_asked_for():
    scenario = Scenario.model_validate(
        {"task": {"data": "builtin:synthetic"}, "clients": {"count": 1_000_000, "examples": 4}}
    )
    task = load_task(scenario, CPU, torch.float32)
    assert len(task.clients) == len(task.clients.eligible) == 1_000_000
    rows = task.clients.rows(999_999)
    batch = task.train.gather(torch.from_numpy(rows))
    assert batch.inputs["pixel_values"].shape == (4, 1, 8, 8)
    again = task.train.gather(torch.from_numpy(rows[2:]))
    assert torch.equal(batch.inputs["pixel_values"][2:], again.inputs["pixel_values"])
    assert len(task.test_rows) == 512
    assert EvenRows(5, 3).rows(4).tolist() == [12, 13, 14]


def test_synthetic_classes_differ_and_can_be_told_apart():
    data = SyntheticImages(4000, (1, 8, 8), 0, CPU, torch.float32)
    batch = data.gather(torch.arange(4000))
    pixels, labels = batch.inputs["pixel_values"].flatten(1), batch.labels
    means = torch.stack([pixels[:2000][labels[:2000] == c].mean(0) for c in range(10)])
    nearest = torch.cdist(pixels[2000:], means).argmin(1)
    assert float((nearest == labels[2000:]).float().mean()) > 0.9


@pytest.fixture
def saved(tmp_path):
    draw = np.random.default_rng(0)
    images = [
        Image.fromarray(draw.integers(0, 255, (10, 12, 3), dtype=np.uint8)) for _ in range(30)
    ]
    columns = {"picture": images, "kind": [i % 3 for i in range(30)]}
    features = Features({"picture": ImageFeature(), "kind": ClassLabel(names=["a", "b", "c"])})
    data = Dataset.from_dict(columns, features=features)
    path = tmp_path / "saved"
    DatasetDict(data.train_test_split(test_size=0.2, seed=0)).save_to_disk(str(path))
    return str(path)


def test_a_saved_dataset_of_colour_images_is_processed_for_the_model(saved):
    task = TaskSection(data=saved, image="picture", label="kind")
    scenario = Scenario(task=task)
    scenario.clients.count = 4
    made = load_task(scenario, CPU, torch.float32)
    assert made.classes == ["a", "b", "c"]
    batch = made.train.gather(torch.arange(5))
    assert batch.inputs["pixel_values"].shape == (5, 1, 8, 8)
    assert made.base.model.config.num_labels == 3
    assert made.base.head == ["classifier"]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            {"base": "builtin:none"},
            "task.base = 'builtin:none': allowed: builtin:bert-words, builtin:llama",
        ),
        ({"base": "./nowhere"}, "task.base = './nowhere': no such folder"),
        ({"data": "builtin:none"}, "task.data = 'builtin:none'"),
        ({"data": "./nowhere"}, "task.data = './nowhere': no such file"),
        ({"data": "nowhere.parquet"}, "no such file"),
    ],
)
def test_models_and_data_that_are_not_there(task, said):
    with pytest.raises(ScenarioError, match=said):
        load_task(Scenario(task=TaskSection(**task)), CPU, torch.float32)


def test_a_column_that_is_not_there(saved):
    with pytest.raises(ScenarioError, match=r"task.label = 'label': no such column.*kind"):
        load_images(TaskSection(data=saved, image="picture"))
