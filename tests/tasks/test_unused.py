"""Keys that say how to read other data than those that are named are refused, not passed over."""

from __future__ import annotations

import pytest

from fedtune.errors import Incompatible, ScenarioError
from fedtune.scenario.loading import validate
from fedtune.scenario.task import TaskSection
from fedtune.tasks import sources
from fedtune.tasks.sources import load_splits
from fedtune.tasks.unused import check_used
from tests.tasks import kit

ROWS = [{"text": f"play song {n}", "label": "ab"[n % 2]} for n in range(10)]


@pytest.fixture
def folder(tmp_path):
    for name in ("train.csv", "test.csv", "exam.csv"):
        kit.as_csv(tmp_path, name, ROWS)
    (tmp_path / "lines.txt").write_text("play song\nrain today\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "rain", "label": "a"}\n' * 4)
    return tmp_path


@pytest.mark.parametrize(
    ("data", "changes", "said"),
    [
        ("rows.jsonl", {"columns": ["text", "label"]}, "columns .*: is for csv and tsv files"),
        ("lines.txt", {"columns": ["text"]}, "columns .*: is for csv and tsv files"),
        ("train.csv", {"pattern": "(?P<text>.*)"}, "pattern .*: is for txt files"),
        (".", {"pattern": "(?P<text>.*)"}, "pattern .*: is for txt files"),
        ("train.csv", {"subset": "en"}, "subset = 'en': is of a data set of the hub"),
        (".", {"subset": "en"}, "subset = 'en': is of a data set of the hub"),
        ("train.csv", {"train_split": "exam"}, "train_split = 'exam': .* is one file"),
        ("train.csv", {"test_split": "exam"}, "test_split = 'exam': .* is one file"),
    ],
)
def test_what_other_data_are_read_by_is_refused(folder, data, changes, said):
    task = TaskSection(kind="text-classification", data=str(folder / data), **changes)
    with pytest.raises(ScenarioError, match=f"task.{said}"):
        load_splits(task, (), {})


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        ("train.csv", {"columns": ["text", "label"]}),
        ("lines.txt", {"pattern": "(?P<text>.*) .*"}),
        (".", {"columns": ["text", "label"], "test_split": "exam"}),
        ("rows.jsonl", {"test": "test.csv", "columns": ["text", "label"]}),
    ],
)
def test_what_the_data_are_read_by_is_used(folder, data, changes):
    changes = {k: str(folder / v) if k == "test" else v for k, v in changes.items()}
    task = TaskSection(kind="text-classification", data=str(folder / data), **changes)
    assert len(load_splits(task, (), {})[0]["train"])


@pytest.mark.parametrize("name", ["x.csv", "x.CSV", "x.csv.gz", "x.tsv", "part/0.csv"])
def test_csv_files_are_known_however_they_are_called(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    for data in (file, tmp_path):
        check_used(TaskSection(data=str(data), columns=["text", "label"]))
        with pytest.raises(ScenarioError, match=r"task\.pattern"):
            check_used(TaskSection(data=str(data), pattern="(?P<text>.*)"))


def test_the_configuration_of_a_hub_data_set_is_asked_for(monkeypatch):
    asked = []

    def hub(*given):
        asked.append(given)
        raise OSError("no network here")

    monkeypatch.setattr(sources, "load_dataset", hub)
    with pytest.raises(ScenarioError, match="no network here"):
        load_splits(TaskSection(data="someone/words", subset="en"), (), {})
    assert asked == [("someone/words", "en")]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"kind": "causal-lm", "text_pair": "other"}, "text_pair is for kind 'text-class"),
        ({"label_separator": ","}, "label_separator is for kind 'text-classification'"),
        ({"kind": "causal-lm", "labels": ["a", "b"]}, "labels: causal-lm has no classes"),
        ({"max_length": 16}, "max_length: image-classification has no tokens"),
        ({"data": "builtin:digits", "test": "more.csv"}, "test: builtin:digits has a test split"),
        ({"data": "builtin:digits", "subset": "en"}, "subset: builtin:digits has a test split"),
    ],
)
def test_what_a_kind_of_task_has_no_use_for_is_refused(section, said):
    with pytest.raises(ScenarioError, match=f"task.{said}"):
        validate({"task": section})


@pytest.mark.parametrize("key", ["epsilon", "noise_multiplier"])
def test_a_promise_of_privacy_without_a_mechanism_is_refused(key):
    with pytest.raises(Incompatible, match=rf"privacy.{key}: has no effect .*mechanism = 'none'"):
        validate({"privacy": {key: 1.0}})


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"faults": {"noise_up": 0.1, "snr_up": 10.0}}, "give noise_up or snr_up, not both"),
        ({"faults": {"noise_down": 0.1, "snr_down": 10.0}}, "give noise_down or snr_down"),
        ({"privacy": {"adaptive": {}}}, "privacy.adaptive: has no effect"),
        (
            {"privacy": {"mechanism": "user", "epsilon": 1.0, "max_participations": 3}},
            "max_participations: is for mechanism 'example'",
        ),
    ],
)
def test_of_two_ways_to_say_a_thing_none_is_passed_over(sections, said):
    with pytest.raises(ScenarioError, match=said):
        validate(sections)
