"""A folder is read as its names say, or a line says what to do."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks.sources import OWN_TEST, load_splits

FRAME = pd.DataFrame({"text": ["NA", "0012", "a, b"], "label": ["a", "b", "NA"]})
WRITE = {
    "csv": lambda path: FRAME.to_csv(path, index=False),
    "gz": lambda path: FRAME.to_csv(path, index=False),
    "CSV": lambda path: FRAME.to_csv(path, index=False),
    "jsonl": lambda path: FRAME.to_json(path, orient="records", lines=True),
    "json": lambda path: FRAME.to_json(path),
    "parquet": lambda path: FRAME.to_parquet(path, index=False),
    "txt": lambda path: path.write_text("all rights reserved\n"),
    "png": lambda path: path.write_bytes(PICTURE),
    "md": lambda path: path.write_text("# About\n"),
}
_file = io.BytesIO()
Image.fromarray(np.zeros((8, 8), np.uint8)).save(_file, "PNG")
PICTURE = _file.getvalue()


def splits(tmp_path, *names, **changes):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        WRITE[name.rpartition(".")[2]](tmp_path / name)
    task = TaskSection(kind="text-classification", data=str(tmp_path), **changes)
    return load_splits(task, ("text", "label"), {})


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "test.jsonl"),
        ("train.CSV", "test.csv.gz", "LICENSE.txt", "notes.json"),
        ("train.parquet", "test.parquet", "other.csv"),
        ("tickets-train.csv", "tickets-test.csv"),
        ("train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl", "README.md"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "README.md"),
        ("train/a.csv", "test/b.csv", "LICENSE.txt"),
    ],
)
def test_names_say_which_split_a_file_is(tmp_path, names):
    found, notes = splits(tmp_path, *names)
    assert not notes
    for rows in found.values():
        assert [dict(row) for row in rows] == FRAME.to_dict("records")


@pytest.mark.parametrize("name", ["tickets.csv", "tickets.jsonl", "tickets.parquet", "a/b.csv.gz"])
def test_a_single_file_in_a_folder_is_read_like_the_file(tmp_path, name):
    found, notes = splits(tmp_path, name, "LICENSE.txt", "README.md")
    assert notes == [OWN_TEST]
    rows = [dict(row) for split in found.values() for row in split]
    assert sorted(rows, key=str) == sorted(FRAME.to_dict("records"), key=str)


def test_files_without_a_split_are_one_after_another(tmp_path):
    found, notes = splits(tmp_path, "a.csv", "b.csv")
    assert notes == [OWN_TEST]
    assert sum(map(len, found.values())) == 2 * len(FRAME)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a.csv", "b.jsonl"), r"holds a\.csv, b\.jsonl; name one in task\.data"),
        (("a.csv", "b.csv", "c.parquet"), r"holds a\.csv, b\.csv, c\.parquet; name one"),
        (("a.csv", "img/1.png"), r"holds a\.csv beside pictures; name one in task\.data"),
        (("train.csv", "train.jsonl"), r"both train\.csv and train\.jsonl are split 'train'"),
        (("train.csv", "test.csv", "test.csv.gz"), r"both test\.csv and test\.csv\.gz are split"),
        (("README.md",), "cannot be read|no file"),
    ],
)
def test_what_could_only_be_guessed_is_refused(tmp_path, names, said):
    with pytest.raises(ScenarioError, match=said) as error:
        splits(tmp_path, *names)
    assert "\n" not in str(error.value)


def test_a_fault_is_named_by_file_and_line_also_in_a_folder(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,y\nx,y\n")
    (tmp_path / "b.csv").write_text("text,label\nx,y\n\nx,\n")
    task = TaskSection(kind="text-classification", data=str(tmp_path))
    with pytest.raises(ScenarioError, match=r"b\.csv, line 4: holds no label"):
        load_splits(task, ("text", "label"), {})
