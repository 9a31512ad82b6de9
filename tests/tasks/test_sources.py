"""Rows from files and folders of every kind, natural clients, and the cache of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from fedtune.errors import ScenarioError
from fedtune.scenario.clients import PartitionSection
from fedtune.scenario.schema import Scenario
from fedtune.scenario.task import TaskSection
from fedtune.tasks.examples import NAMELESS, NO_ID, dealt_by
from fedtune.tasks.load import load_task
from fedtune.tasks.partition import partition
from fedtune.tasks.sources import load_splits
from fedtune.tasks.text import load_text
from tests.tasks import kit

CPU = torch.device("cpu")
ROWS = [
    {"text": f"play song {n} " + "now " * (n % 5), "label": "ab"[n % 2], "author": "xyz"[n % 3]}
    for n in range(1500)
]
COLUMNS = {key: [row[key] for row in ROWS] for key in ROWS[0]}


def write(kind: str, folder) -> str:
    if kind == "csv":
        return kit.as_csv(folder, "data.csv", ROWS)
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "tsv":
        path.write_text("".join("\t".join(row.values()) + "\n" for row in ROWS))
    elif kind == "parquet":
        Dataset.from_dict(COLUMNS).to_parquet(str(path))
    else:
        DatasetDict({"train": Dataset.from_dict(COLUMNS)}).save_to_disk(str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "tsv", "parquet", "saved"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    columns = ["text", "label", "author"] if kind == "tsv" else None
    task = TaskSection(kind="text-classification", data=write(kind, tmp_path), columns=columns)
    splits, _ = load_splits(task, ("text", "label"), {})
    assert {name: len(split) for name, split in splits.items()} == {"train": 1200, "test": 300}
    found = sorted((*splits["train"]["text"], *splits["test"]["text"]))
    assert found == sorted(COLUMNS["text"])


def test_a_folder_of_files_has_the_splits_of_their_names(tmp_path):
    kit.as_csv(tmp_path, "train.csv", ROWS[:20])
    kit.as_csv(tmp_path, "dev.csv", ROWS[20:30])
    task = TaskSection(data=str(tmp_path), test_split="dev")
    splits, _ = load_splits(task, (), {})
    assert [len(splits["train"]), len(splits["test"])] == [20, 10]
    test = kit.as_csv(tmp_path, "other.csv", ROWS[:3])
    one = TaskSection(data=str(tmp_path / "train.csv"), test=test)
    assert len(load_splits(one, (), {})[0]["test"]) == 3
    misspelt = TaskSection(data=str(tmp_path), test_split="tset")
    with pytest.raises(ScenarioError, match=r"task.test_split = 'tset': .* has: dev, other, train"):
        load_splits(misspelt, (), {})
    with pytest.raises(ScenarioError, match=r"task.data is no file"):
        load_splits(TaskSection(data=str(tmp_path), test=test), (), {})


def test_a_text_file_is_its_lines_or_the_matches_of_a_pattern(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text("ANN:\nmoney now\nplay\n\nBO:\na song\n\nANN:\nrain\n")
    lines, notes = load_splits(TaskSection(data=str(path)), ("text",), {})
    assert notes == ["data: no test split, so 20% of the rows are kept for testing"]
    assert len(lines["train"]) + len(lines["test"]) == 7
    pattern = r"(?ms)^(?P<who>[A-Z]+):\n(?P<text>.*?)(?=\n\n|\Z)"
    found, _ = load_splits(TaskSection(data=str(path), pattern=pattern), ("text",), {})
    rows = [*found["train"], *found["test"]]
    assert sorted((row["who"], row["text"]) for row in rows) == [
        ("ANN", "money now\nplay"), ("ANN", "rain\n"), ("BO", "a song"),
    ]  # fmt: skip


def test_a_subset_is_drawn_once_and_always_the_same(tmp_path):
    data = write("csv", tmp_path)
    a, b = (
        load_splits(TaskSection(data=data, train_examples=10, test_examples=2), (), {})[0]
        for _ in range(2)
    )
    assert list(a["train"]["text"]) == list(b["train"]["text"])
    assert [len(a["train"]), len(a["test"])] == [10, 2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "./nowhere.csv"}, "no such file or folder"),
        ({"data": "builtin:sums"}, "no such builtin data .*allowed: builtin:x, a file"),
        ({"test": "./nowhere.csv"}, "'nowhere.csv' is no file"),
        ({"train_split": "learn", "data": "FOLDER"}, "task.train_split = 'learn': .* has: train"),
    ],
)
def test_data_that_is_not_there_is_one_line(tmp_path, changes, said):
    data = write("csv", tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    DatasetDict({"train": Dataset.from_dict(COLUMNS)}).save_to_disk(str(folder))
    given = {key: str(folder) if value == "FOLDER" else value for key, value in changes.items()}
    task = TaskSection(**{"kind": "text-classification", "data": data, **given})
    with pytest.raises(ScenarioError, match=said) as error:
        load_splits(task, ("text", "label"), {"builtin:x": DatasetDict})
    assert "\n" not in str(error.value)


def scenario(tmp_path, count=3, **partition) -> Scenario:
    made = Scenario(
        task=TaskSection(
            kind="text-classification", base="builtin:bert-words", data=write("csv", tmp_path)
        )
    )
    made.clients.count = count
    made.clients.partition = type(made.clients.partition)(**partition)
    return made


def test_natural_clients_hold_the_rows_of_one_value_each(tmp_path):
    task = load_task(scenario(tmp_path, kind="natural", by="author"), CPU, torch.float32)
    rows = load_splits(scenario(tmp_path).task, (), {})[0]["train"]
    held = [{rows["author"][int(i)] for i in task.clients.rows(c)} for c in range(3)]
    assert [len(values) for values in held] == [1, 1, 1]
    assert set.union(*held) == set("xyz")
    assert sum(len(task.clients.rows(c)) for c in range(3)) == len(rows)


def test_fewer_clients_than_values_are_those_with_most_rows_and_it_is_said(tmp_path):
    part = {"kind": "natural", "by": "text", "pattern": r"song (\d)"}
    task = load_task(scenario(tmp_path, 2, **part), CPU, torch.float32)
    sizes = [len(task.clients.rows(c)) for c in range(2)]
    assert min(sizes) > 2
    left = len(task.train) - sum(sizes)
    assert task.notes[1:] == [f"data: {left} of {len(task.train)} examples are of no client"]
    assert task.left_out == {"examples are of no client": left}


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_rows_without_an_id_are_no_client_and_are_counted(tmp_path, form):
    """They were one client, "None" or "", which user-level privacy took for one person."""
    ids = ["ann", "bo", None, "cem", "", "ann", "  ", "bo", None, "NA"]
    rows = [{"text": f"play {n}", "label": "ab"[n % 2], "who": who} for n, who in enumerate(ids)]
    path = tmp_path / f"x.{form}"
    if form == "csv":
        kit.as_csv(tmp_path, path.name, rows)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        Dataset.from_list(rows).to_parquet(str(path))
    for pattern in (None, "(.*)"):
        made = scenario(tmp_path, 4, kind="natural", by="who", pattern=pattern)
        made.task = made.task.model_copy(update={"data": str(path), "test": str(path)})
        task = load_task(made, CPU, torch.float32)
        held = [[ids[int(i)] for i in task.clients.rows(client)] for client in range(4)]
        assert sorted(held) == [["NA"], ["ann", "ann"], ["bo", "bo"], ["cem"]]
        assert task.left_out == {NAMELESS: 4}
        assert task.notes == [f"data: 4 of 10 {NAMELESS}"]
        made.clients.count = 3
        less = load_task(made, CPU, torch.float32)
        assert less.left_out == {NAMELESS: 4, "examples are of no client": 1}
        again = load_task(made, CPU, torch.float32, parts=less.clients.parts)
        assert again.left_out == less.left_out
        made.clients.count = 5
        with pytest.raises(ScenarioError, match=r"clients.count = 5: 'who' has 4 different values"):
            load_task(made, CPU, torch.float32)


def test_an_id_that_is_a_number_may_be_absent_too(tmp_path):
    ids = [1.0, float("nan"), 2.0, 1.0]
    rows = {"text": list("abcd"), "label": list("xyxy"), "who": ids}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "x.parquet"))
    made = scenario(tmp_path, 2, kind="natural", by="who")
    data = str(tmp_path / "x.parquet")
    made.task = made.task.model_copy(update={"data": data, "test": data})
    task = load_task(made, CPU, torch.float32)
    assert [task.clients.rows(client).tolist() for client in range(2)] == [[0, 3], [2]]
    assert task.left_out == {NAMELESS: 1}


def dealt(values, pattern=None, kind="natural") -> list[list[int]]:
    """The rows of every client, where a column of these values names them."""
    rows = Dataset.from_dict({"who": values})
    section = PartitionSection(kind=kind, by="who", pattern=pattern)
    by = dealt_by(SimpleNamespace(rows=rows, source=None), section)
    named = len({value for value in by.tolist() if value != NO_ID})
    return [part.tolist() for part in partition(by, section, named, seed=0)]


def groups(values) -> list[list[int]]:
    """The rows of equal values."""
    return sorted([n for n, v in enumerate(values) if v == one] for one in set(values))


BYTES = st.lists(st.binary(min_size=1, max_size=3) | st.sampled_from([b"\xff", b"\xfe", b"\0"]),
                 min_size=1, max_size=8)  # fmt: skip
TEXTS = st.lists(st.text("ab\0\\x", min_size=1, max_size=3), min_size=1, max_size=8)


@given(BYTES | TEXTS)
def test_different_ids_are_different_clients(values):
    texts = [v if isinstance(v, str) else v.decode("utf-8", "surrogateescape") for v in values]
    if all(text.strip() for text in texts):  # else one is blank, and no client's
        assert sorted(dealt(values)) == groups(values)


def test_ids_that_bytes_or_zeros_tell_apart():
    assert dealt([b"\xff", b"\xfe", b"\xff"]) == [[1], [0, 2]]
    assert dealt(["a", "a\0", "a"]) == [[0, 2], [1]]
    assert dealt([b"\0", b"\0\0", b"\0"]) == [[0, 2], [1]]
    assert dealt(["u1\0-x", "u1-x"], pattern="(.*)-") == [[1], [0]]


def test_values_that_are_dealt_by_classes_may_be_any_bytes():
    parts = dealt([b"\xff", b"a\0", b"\xff", b"a\0"], kind="iid")
    assert sorted(row for part in parts for row in part) == [0, 1, 2, 3]


def test_clients_can_be_dealt_by_length(tmp_path):
    part = {"kind": "pathological", "by": "length", "num_classes_per_partition": 1}
    task = load_task(scenario(tmp_path, 4, **part), CPU, torch.float32)
    spreads = [np.ptp(task.train.widths(task.clients.rows(c))) for c in task.clients.eligible]
    assert max(spreads) < np.ptp(task.train.widths(np.arange(len(task.train))))


@pytest.mark.parametrize(
    ("count", "part", "said"),
    [
        (4, {"kind": "natural", "by": "author"}, "clients.count = 4: 'author' has 3"),
        (3, {"kind": "natural", "by": "writer"}, "clients.partition.by = 'writer': no such column"),
        (3, {"kind": "natural"}, "needs clients.partition.by"),
        (3, {"kind": "natural", "by": "author", "alpha": 1}, "clients.partition.alpha: unknown"),
        (3, {"kind": "natural", "by": "text", "pattern": "("}, "clients.partition.pattern = '"),
        (3, {"kind": "natural", "by": "text", "pattern": "x"}, "needs one group"),
        (3, {"kind": "natural", "by": "text", "pattern": "(qq)"}, "does not match 'play"),
        (3, {"kind": "iid", "pattern": "(x)"}, "needs clients.partition.by"),
    ],
)
def test_natural_clients_that_cannot_be(tmp_path, count, part, said):
    with pytest.raises(ScenarioError) as error:
        load_task(scenario(tmp_path, count, **part), CPU, torch.float32)
    assert said in str(error.value)


def test_tokens_are_made_once_and_mapped_from_disk(tmp_path, monkeypatch):
    task = scenario(tmp_path).task
    first = load_text(task)
    made = []
    monkeypatch.setattr(
        "fedtune.tasks.text.as_text", lambda value: made.append(value) or str(value)
    )
    again = load_text(task)
    assert len(made) <= 2  # the probe for columns, not the rows
    rows = torch.arange(len(first.train))
    assert torch.equal(
        first.train.gather(rows).inputs["input_ids"], again.train.gather(rows).inputs["input_ids"]
    )
    mapped = again.train.tokens["input_ids"]
    maps = Path("/proc/self/maps").read_text().splitlines()
    places = [line.split() for line in maps if "fedtune-tokens" in line]
    spans = [[int(end, 16) for end in place[0].split("-")] for place in places]
    assert any(low <= mapped.data_ptr() < high for low, high in spans)


def test_other_settings_are_other_tokens(tmp_path):
    task = scenario(tmp_path).task
    whole, cut = (load_text(task.model_copy(update={"max_length": n})) for n in (20, 4))
    rows = np.arange(len(whole.train))
    assert whole.train.widths(rows).max() > 4
    assert cut.train.widths(rows).max() == 4


def test_how_a_tokenizer_truncates_decides_its_tokens(tmp_path):
    folder = tmp_path / "base"
    base = kit.save("bert", folder)
    task = scenario(tmp_path).task.model_copy(update={"base": base, "max_length": 4})
    before = load_text(task)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"truncation_side": "left"}))
    after = load_text(task)
    rows = torch.arange(len(before.train))
    a, b = (e.train.gather(rows).inputs["input_ids"] for e in (before, after))
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    "task",
    [
        {"kind": "text-classification", "base": "builtin:bert-words", "data": "builtin:intents",
         "text": "body"},
        {"kind": "causal-lm", "base": "builtin:llama-words", "data": "builtin:sums",
         "instruction": "instruction", "response": "said"},
        {"label": "kind"},
    ],
)  # fmt: skip
def test_built_in_data_is_checked_like_any_other(task):
    with pytest.raises(ScenarioError, match="no such column in train"):
        load_task(Scenario(task=TaskSection(**task)), CPU, torch.float32)
