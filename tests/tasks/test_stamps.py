"""Other content is read anew, also under the same name, of the same size and time."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import BertConfig, BertModel

from fedtune.scenario.schema import Scenario
from fedtune.scenario.task import TaskSection
from fedtune.tasks import stamps as module
from fedtune.tasks.images import load_images
from fedtune.tasks.library import Library
from fedtune.tasks.load import load_task
from fedtune.tasks.sources import load_splits
from fedtune.tasks.stamps import stamps
from fedtune.tasks.text import load_text
from tests.tasks import kit

CPU = torch.device("cpu")
TIME = (1_700_000_000, 1_700_000_000)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def frame(word) -> pd.DataFrame:
    return pd.DataFrame({"text": [f"{word} {n}" for n in range(10)], "label": list("ab") * 5})


WRITERS = {
    "x.csv": lambda path, word: frame(word).to_csv(path, index=False),
    "x.tsv": lambda path, word: frame(word).to_csv(path, index=False, sep="\t"),
    "x.csv.gz": lambda path, word: frame(word).to_csv(path, index=False),
    "x.jsonl": lambda path, word: frame(word).to_json(path, orient="records", lines=True),
    "x.json": lambda path, word: frame(word).to_json(path),
    "x.parquet": lambda path, word: frame(word).to_parquet(path, index=False),
    "x.txt": lambda path, word: path.write_text("\n".join(frame(word)["text"])),
    "saved": lambda path, word: _saved(path, frame(word)),
    "folder": lambda path, word: _in_folder(path, "train.csv", frame(word)),
    "shards": lambda path, word: _in_folder(path, "train-00000-of-00001.csv", frame(word)),
    "card": lambda path, word: _with_card(path, frame(word)),
}


def _saved(path, rows) -> None:
    """Copied over what is there, with the same name of its state."""
    made, other = Dataset.from_pandas(rows, preserve_index=False), path.with_name("other")
    made._fingerprint = "0123456789abcdef"
    made.save_to_disk(str(other))
    shutil.copytree(other, path, dirs_exist_ok=True)


def _in_folder(path, name, rows) -> None:
    path.mkdir(exist_ok=True)
    rows.to_csv(path / name, index=False)


def _with_card(path, rows) -> None:
    _in_folder(path, "some.csv", rows)
    (path / "README.md").write_text(
        "---\nconfigs:\n- config_name: x\n  data_files: some.csv\n---\n"
    )


def dated(path: Path) -> None:
    """The time of everything below a path, as a copy that keeps it leaves it."""
    for file in [path, *path.rglob("*")]:
        os.utime(file, TIME)


@pytest.mark.parametrize("name", WRITERS)
def test_rows_of_a_file_that_was_replaced_by_one_of_the_same_size_and_time(tmp_path, name):
    path, found = tmp_path / name, []
    kind = "causal-lm" if name == "x.txt" else "text-classification"
    task = TaskSection(kind=kind, base="builtin:bert-words", data=str(path))
    for word in ("rain", "wind"):
        WRITERS[name](path, word)
        dated(path)
        splits = load_splits(task, ("text",), {})[0]
        found.append({text.split()[0] for split in splits.values() for text in split["text"]})
        if kind != "causal-lm":
            tokens = load_text(task).train.tokens["input_ids"].tolist()
            known = {kit.WORDS[token] for token in tokens}
            assert known & {"rain", "wind"} == {word}
    assert found == [{"rain"}, {"wind"}]


def picture(value) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(file, "BMP")
    return file.getvalue()


@pytest.mark.parametrize("named", [True, False])
def test_pictures_that_were_replaced(tmp_path, named):
    folder, found = tmp_path / "data", []
    for value in (10, 20):
        for n in range(4):
            (folder / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
            (folder / "ab"[n % 2] / f"{n}.bmp").write_bytes(picture(value + n))
        if named:
            files = [f"{'ab'[n % 2]}/{n}.bmp" for n in range(4)]
            pd.DataFrame({"image": files, "label": list("abab")}).to_csv(folder / "train.csv")
        dated(folder)
        examples = load_images(TaskSection(data=str(folder)))
        shown = [*examples.train.pixels[:, 0, 0, 0], *examples.test.pixels[:, 0, 0, 0]]
        found.append(sorted(map(int, shown)))
    assert found == [[10, 11, 12, 13], [20, 21, 22, 23]]


@pytest.mark.parametrize("what", ["data", "base", "test"])
def test_a_library_lends_nothing_that_was_replaced(tmp_path, what):
    """A comparison holds one base and one data set for all of its runs."""
    library, lent = Library(), []
    words = kit.save("bert", tmp_path / "base")
    data = {name: tmp_path / f"{name}.csv" for name in ("data", "test")}
    for name in data.values():
        frame("rain").to_csv(name, index=False)
    task = TaskSection(kind="text-classification", base=words, data=str(data["data"]),
                       test=str(data["test"]))  # fmt: skip
    for turn in range(3):
        if turn == 2 and what == "base":
            torch.manual_seed(9)
            BertModel(BertConfig.from_pretrained(words)).save_pretrained(words)
        elif turn == 2:
            frame("wind").to_csv(data[what], index=False)
        dated(tmp_path / "base")
        for name in data.values():
            dated(name)
        lent.append(load_task(Scenario(task=task, clients={"count": 2}), CPU, torch.float32,
                              library=library))  # fmt: skip
    assert lent[1].train is lent[0].train
    assert lent[2].train is not lent[1].train
    weights = [t.base.model.bert.embeddings.word_embeddings.weight for t in lent]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2]) == (what != "base")
    if what != "base":
        table = lent[2].train if what == "data" else lent[2].test
        assert kit.WORDS.index("wind") in table.tokens["input_ids"].tolist()


def test_a_library_looks_at_the_pictures_that_a_file_names(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    names = [str(tmp_path / "elsewhere" / f"{n}.bmp") for n in range(4)]
    data = tmp_path / "here" / "x.csv"
    pd.DataFrame({"image": names, "label": list("abab")}).to_csv(data, index=False)
    task, library, lent = TaskSection(data=str(data), test=str(data)), Library(), []
    for value in (10, 10, 20):
        for name in names:
            Path(name).write_bytes(picture(value))
        dated(tmp_path / "elsewhere")
        lent.append(load_task(Scenario(task=task, clients={"count": 2}), CPU, torch.float32,
                              library=library))  # fmt: skip
    assert lent[1].train is lent[0].train
    assert [int(task.train.pixels[0, 0, 0, 0]) for task in lent] == [10, 10, 20]


def test_the_same_content_is_read_once(tmp_path, monkeypatch):
    frame("rain").to_csv(tmp_path / "x.csv", index=False)
    shutil.copy(tmp_path / "x.csv", tmp_path / "y.csv")
    first = load_splits(TaskSection(data=str(tmp_path / "x.csv")), (), {})[0]["train"]
    monkeypatch.setattr("fedtune.tasks.files._write", lambda *given: pytest.fail("read again"))
    os.utime(tmp_path / "x.csv", TIME)
    for name in ("x.csv", "y.csv"):
        again = load_splits(TaskSection(data=str(tmp_path / name)), (), {})[0]["train"]
        assert list(again["text"]) == list(first["text"])


@pytest.mark.parametrize("whole", [True, False])
def test_stamps_tell_contents_apart(tmp_path, monkeypatch, whole):
    """Also of files that are too large to be read whole: by both ends, times and inode."""
    if not whole:
        monkeypatch.setattr(module, "READ_WHOLE", 10)
        monkeypatch.setattr(module, "END", 4)
    path = tmp_path / "x"
    path.write_bytes(b"a" * 40)
    os.utime(path, TIME)
    before = stamps([path])
    assert stamps([path]) == before
    for content in (b"b" + b"a" * 39, b"a" * 39 + b"b", b"a" * 41, b"a" * 20 + b"b" + b"a" * 19):
        path.write_bytes(content)
        os.utime(path, TIME)
        assert stamps([path]) != before
    assert stamps([tmp_path / "none", tmp_path]) == [(), ()]
    path.write_bytes(b"a" * 40)
    assert (stamps([path]) == before) == whole  # only whole contents outlive a copy


@pytest.mark.parametrize("settled", [True, False])
def test_a_file_is_read_again_once_it_changes_or_may_have(tmp_path, monkeypatch, settled):
    """Within the grain of its times a change does not show in them."""
    if settled:
        monkeypatch.setattr(module, "SETTLED", -1)
    read, plain = [], hashlib.file_digest
    monkeypatch.setattr(
        module.hashlib, "file_digest", lambda *given: read.append(1) or plain(*given)
    )
    path = tmp_path / "x"
    path.write_bytes(b"a" * 40)
    os.utime(path, TIME)
    first = stamps([path])
    assert stamps([path]) == first
    assert len(read) == (1 if settled else 2)
    before = len(read)
    other = tmp_path / "y"
    other.write_bytes(b"b" * 40)
    other.replace(path)
    os.utime(path, TIME)
    assert stamps([path]) != first
    assert len(read) == before + 1
