"""Classes meet by name: each file's numbers are of its own list."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.deploy.data import data_fault
from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks.labels import encode_labels
from fedtune.tasks.sources import OWN_TEST, load_splits
from fedtune.tasks.text import load_text

NAMES = ["card", "music", "rain"]


def rows_of(labels, order) -> Dataset:
    """Rows with their labels as numbers of a list, or as they are where the order is None."""
    texts = [f"play {n}" for n in range(len(labels))]
    if order is None:
        return Dataset.from_dict({"text": texts, "label": labels})
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(order))})
    numbers = [order.index(label) for label in labels]
    return Dataset.from_dict({"text": texts, "label": numbers}, features=features)


def names_of(encoded, classes) -> dict[str, list[str]]:
    return {split: [classes[i] for i in numbers] for split, numbers in encoded.items()}


ORDERS = st.none() | st.permutations(NAMES)
LABELS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=8)


@given(ORDERS, ORDERS, LABELS, LABELS, st.none() | st.permutations(NAMES))
@settings(max_examples=60)
def test_classes_are_the_same_names_whatever_the_lists_of_their_files(one, other, a, b, labels):
    task = TaskSection(kind="text-classification", base="builtin:bert-words", labels=labels)
    a = [*NAMES, *a]
    splits = DatasetDict({"train": rows_of(a, one), "test": rows_of(b, other)})
    encoded, classes = encode_labels(task, splits)
    assert names_of(encoded, classes) == {"train": a, "test": b}
    assert classes == (labels or one or sorted(NAMES, key=lambda name: (len(name), name)))


@pytest.mark.parametrize("labels", [None, NAMES, NAMES[::-1]])
@pytest.mark.parametrize("form", ["parquet", "saved", "mixed"])
def test_training_and_test_files_with_lists_of_their_own(tmp_path, form, labels):
    train, test = (rows_of(NAMES * 3, order) for order in (NAMES, NAMES[::-1]))
    data, other = str(tmp_path / "train.parquet"), None
    if form == "saved":
        train.save_to_disk(str(tmp_path / "a" / "train"))
        data = str(tmp_path / "saved")
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        train.save_to_disk(data + "/train")
        test.save_to_disk(data + "/test")
    else:
        train.to_parquet(data)
        other = str(tmp_path / ("test.csv" if form == "mixed" else "test.parquet"))
        if form == "mixed":
            rows_of(NAMES * 3, None).to_csv(other)
        else:
            test.to_parquet(other)
    task = TaskSection(kind="text-classification", base="builtin:bert-words", data=data,
                       test=other, labels=labels)  # fmt: skip
    examples = load_text(task)
    assert examples.classes == (labels or NAMES)
    for table in (examples.train, examples.test):
        assert [examples.classes[i] for i in table.labels] == NAMES * 3
    if labels is None and form == "parquet":
        shards = tmp_path / "shards"
        shards.mkdir()
        train.to_parquet(str(shards / "train-00000-of-00002.parquet"))
        test.to_parquet(str(shards / "train-00001-of-00002.parquet"))
        joined = load_text(task.model_copy(update={"data": str(shards), "test": None}))
        drawn = load_splits(task.model_copy(update={"data": str(shards), "test": None}), (), {})[0]
        for name, table in (("train", joined.train), ("test", joined.test)):
            numbers = [int(text.split()[1]) for text in drawn[name]["text"]]
            assert [joined.classes[i] for i in table.labels] == [NAMES[n % 3] for n in numbers]


def test_numbers_without_names_are_not_numbers_of_the_other_files_list():
    task = TaskSection(kind="text-classification", base="builtin:bert-words")
    numbers = Dataset.from_dict({"text": ["a"], "label": [0]})
    for train, test in ((rows_of(NAMES, NAMES), numbers), (numbers, rows_of(NAMES, NAMES))):
        with pytest.raises(ScenarioError, match="only one of training and test names its numbers"):
            encode_labels(task, DatasetDict({"train": train, "test": test}))


def test_a_clients_numbers_are_of_its_own_list(tmp_path):
    rows_of(["rain", "card"], ["rain", "unknown", "card"]).to_parquet(str(tmp_path / "a.parquet"))
    rows_of(["rain", "unknown"], ["rain", "unknown"]).to_parquet(str(tmp_path / "b.parquet"))
    tasks = [
        TaskSection(kind="text-classification", data=str(tmp_path / name), labels=NAMES,
                    test=str(tmp_path / name), base="builtin:bert-words")
        for name in ("a.parquet", "b.parquet")
    ]  # fmt: skip
    assert data_fault(tasks[0]) is None
    assert data_fault(tasks[1]) == "its rows have a label that task.labels does not name"
    assert [NAMES[i] for i in load_text(tasks[0]).train.labels] == ["rain", "card"]


def test_numbers_are_classes_in_the_order_of_numbers(tmp_path):
    rows = Dataset.from_dict({"text": ["a"] * 12, "label": [*range(11), 3]})
    rows.to_csv(tmp_path / "x.csv")
    task = TaskSection(kind="text-classification", base="builtin:bert-words",
                       data=str(tmp_path / "x.csv"), test=str(tmp_path / "x.csv"))  # fmt: skip
    examples = load_text(task)
    assert examples.classes == [str(n) for n in range(11)]
    assert np.array_equal(examples.train.labels, [*range(11), 3])


def test_a_class_that_the_draw_put_into_the_test_is_told_so(tmp_path):
    labels = ["card"] * 20
    rows = [{"text": f"play {n}", "label": label} for n, label in enumerate(labels)]
    drawn = Dataset.from_list(rows).train_test_split(test_size=0.2, seed=0)["test"]["text"]
    rows[int(drawn[0].split()[1])]["label"] = "rare"
    kept = set(range(20)) - {int(text.split()[1]) for text in drawn}
    rows[min(kept)]["label"] = "song"
    Dataset.from_list(rows).to_csv(tmp_path / "x.csv")
    given = {"kind": "text-classification", "base": "builtin:bert-words"}
    task = TaskSection(**given, data=str(tmp_path / "x.csv"))
    assert OWN_TEST in load_splits(task, (), {})[1]
    with pytest.raises(ScenarioError, match=r"'rare' is not in training: .* drawn .*task\.labels"):
        load_text(task)
    named = load_text(task.model_copy(update={"labels": ["card", "rare", "song"]}))
    assert sorted(named.test.labels.tolist()) == [0, 0, 0, 1]


def test_a_class_that_the_draw_of_training_rows_took_away_is_told_from_one_that_is_not_there(
    tmp_path,
):
    names = [f"c{n}" for n in range(10)]
    task = TaskSection(
        kind="text-classification", base="builtin:bert-words", data="x", train_examples=4
    )
    splits = DatasetDict({"train": rows_of(names[:4], None), "test": rows_of(names, None)})
    with pytest.raises(ScenarioError, match=r"'c4' is not in the 4 rows .*task\.train_examples"):
        encode_labels(task, splits)
    more = task.model_copy(update={"train_examples": None})
    with pytest.raises(ScenarioError, match=r"'c4' is not in training; name it in task\.labels"):
        encode_labels(more, splits)


def test_a_name_shows_its_spaces():
    task = TaskSection(kind="text-classification", base="builtin:bert-words")
    splits = DatasetDict({"train": rows_of(["x", "y"], None), "test": rows_of(["x", "y "], None)})
    with pytest.raises(ScenarioError, match=r"'y ' is not in training"):
        encode_labels(task, splits)


def test_one_class_is_nothing_to_learn():
    task = TaskSection(kind="text-classification", base="builtin:bert-words")
    splits = DatasetDict({name: rows_of(["x"], None) for name in ("train", "test")})
    with pytest.raises(ScenarioError, match=r"every row of training is of class 'x'"):
        encode_labels(task, splits)


@pytest.mark.parametrize(
    ("labels", "said"), [(["x", "y", "x"], r"holds 'x' twice"), (["x", " "], r"an empty name")]
)
def test_names_of_classes_are_some_and_different(labels, said):
    with pytest.raises(ValueError, match=said):
        TaskSection(kind="text-classification", labels=labels)
