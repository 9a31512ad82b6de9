"""A folder is read as its names say, or a line says what to do."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks.labels import label_names
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
        ("Train.csv", "Test.csv"),
        ("TRAIN.CSV", "TEST.CSV"),
        ("train.csv", "TEST.csv"),
        ("Train/a.csv", "Test/b.csv"),
        ("train.csv", "test/0.csv"),
        ("train.csv", "test-0.csv"),
        ("traindata.csv", "testdata.csv"),
        ("Train_Set.parquet", "Test_Set.parquet"),
        ("test_project/train.csv", "test_project/test.csv"),
        ("train/crash-test-1.csv", "test/crash-test-2.csv"),
        ("Training (1).csv", "Testing (1).csv"),
    ],
)
def test_names_say_which_split_a_file_is(tmp_path, names):
    found, notes = splits(tmp_path, *names)
    assert [note for note in notes if "other" not in note] == []
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
        (("README.md",), "no file that can be read"),
        (("Train.csv", "train.csv.gz"), r"both Train\.csv and train\.csv\.gz are split 'train'"),
        (("mytrain.csv", "mytest.csv"), r"holds mytest\.csv, mytrain\.csv; call the files train"),
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


def card(path, *files: str, **more: str) -> None:
    """A README.md whose configs name a file for training and one for testing."""
    lines = [f"  - split: {split}\n    path: {name}\n" for split, name in
             zip(("train", "test"), files, strict=True)]  # fmt: skip
    extra = "".join(f"  {key}: {value}\n" for key, value in more.items())
    text = f"---\nconfigs:\n- config_name: default\n{extra}  data_files:\n{''.join(lines)}---\n"
    (path / "README.md").write_text(text + "# About\n")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_files_that_a_card_names_are_read_as_any_other(tmp_path, form):
    card(tmp_path, f"x/a.{form}", f"b*.{form}")
    found, notes = splits(tmp_path, f"x/a.{form}", f"b1.{form}", f"c.{form}")
    assert not notes
    for rows in found.values():
        assert [dict(row) for row in rows] == FRAME.to_dict("records")


def test_a_trailing_comma_in_a_file_that_a_card_names_is_refused(tmp_path):
    card(tmp_path, "a.csv", "b.csv")
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("text,label,who\nx,y,u,\n")
    with pytest.raises(ScenarioError, match=r"a\.csv, line 2: 4 fields"):
        splits(tmp_path)


@pytest.mark.parametrize(
    ("files", "more", "said"),
    [
        (("a.csv", "img.png"), {}, r"configs names img\.png; allowed: \.csv"),
        (("a.csv", "a.csv"), {"sep": '";"'}, r"configs sets 'sep', which is not read; name files"),
        (("a.csv", "none.csv"), {}, r"cannot be read"),
    ],
)
def test_what_a_card_says_and_is_not_read_is_refused(tmp_path, files, more, said):
    card(tmp_path, *files, **more)
    with pytest.raises(ScenarioError, match=said) as error:
        splits(tmp_path, "a.csv", "img.png")
    assert "\n" not in str(error.value)


def test_a_card_without_configs_says_nothing(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\nconfigs:\n- none\n")
    assert splits(tmp_path, "tickets.csv")[1] == [OWN_TEST]


SHARDS = {
    "widths": (pa.array([1], pa.int32()), pa.array([2, 1], pa.int64()), ["1", "2", "1"]),
    "large": (pa.array(["x"], pa.large_string()), pa.array(["y", "x"]), ["x", "y", "x"]),
    "binary": (pa.array([b"x"]), pa.array(["y", "x"]), ["x", "y", "x"]),
    "number and text": (pa.array([1]), pa.array(["2", "1"]), ["1", "2", "1"]),
}


@pytest.mark.parametrize("kind", SHARDS)
def test_shards_whose_types_differ_in_width_meet_by_what_they_say(tmp_path, kind):
    *parts, told = SHARDS[kind]
    for number, labels in enumerate(parts):
        table = pa.table({"text": ["a"] * len(labels), "label": labels, "who": labels})
        pq.write_table(table, tmp_path / f"train-{number}.parquet")
    pq.write_table(table, tmp_path / "test.parquet")
    found, _ = splits(tmp_path)
    assert [str(label) for label in found["train"]["label"]] == told


def test_classes_by_number_beside_numbers_are_one_line(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"])})
    rows = Dataset.from_dict({"text": ["a"], "label": [0]}, features=features)
    rows.to_parquet(str(tmp_path / "train-0.parquet"))
    pq.write_table(pa.table({"text": ["b"], "label": [1]}), tmp_path / "train-1.parquet")
    with pytest.raises(ScenarioError, match=r"'label': train-0\.parquet holds classes by number, "):
        splits(tmp_path)


@pytest.mark.parametrize("head", ["Text,label", "label", "text,Label"])
def test_a_column_that_one_of_several_files_has_not_is_refused(tmp_path, head):
    (tmp_path / "train-0.csv").write_text("text,label\na,x\nb,y\n")
    (tmp_path / "train-1.csv").write_text(f"{head}\n{','.join('c' * len(head.split(',')))}\n")
    with pytest.raises(
        ScenarioError, match=r"train-1\.csv: has no column '(text|label)', as train"
    ):
        splits(tmp_path)


def grey(value) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def images(tmp_path, *names, **files):
    """The pictures of a folder by split: the names of their files, and their classes."""
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(grey(number))
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    task = TaskSection(kind="image-classification", data=str(tmp_path))
    found, notes = load_splits(task, ("image", "label"), {})
    cells = {
        split: [
            (str(Path(row["image"]["path"]).relative_to(tmp_path)), label)
            for row, label in zip(_undecoded(rows), label_names(task, rows), strict=True)
        ]
        for split, rows in found.items()
    }
    return cells, [note for note in notes if note != OWN_TEST]


def _undecoded(rows):
    return rows.cast_column("image", ImageFeature(decode=False))


def test_shards_in_different_folders_name_pictures_beside_themselves(tmp_path):
    for folder in "ab":
        (tmp_path / folder / "x").mkdir(parents=True)
        (tmp_path / folder / "0.dat").write_bytes(grey(0))
        rows = "image,label\n../0.dat,dark\n../0.dat,bright\n"
        (tmp_path / folder / "x" / "list.csv").write_text(rows)
    task = TaskSection(kind="image-classification", data=str(tmp_path))
    found, _ = load_splits(task, ("image", "label"), {})
    paths = [row["image"]["path"] for rows in found.values() for row in _undecoded(rows)]
    seen = sorted(str(Path(p).resolve().relative_to(tmp_path.resolve())) for p in paths)
    assert seen == ["a/0.dat"] * 2 + ["b/0.dat"] * 2


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "train_set"])
def test_pictures_in_folders_of_splits_are_as_datasets_lists_them(tmp_path, train):
    names = [f"{split}/{of}/{n}.png" for split in (train, "test") for of in "ba" for n in (10, 9)]
    cells, notes = images(tmp_path, *names)
    assert not notes
    for split, folder in (("train", train), ("test", "test")):
        assert cells[split] == [(f"{folder}/{of}/{n}.png", of) for of in "ab" for n in (10, 9)]
    if train == "train":
        theirs = load_dataset(str(tmp_path), cache_dir=str(tmp_path / ".cache"))
        for split, rows in theirs.items():
            own = [Path(row["image"]["path"]).name for row in _undecoded(rows)]
            assert own == [Path(name).name for name, _ in cells[split]]
            assert [rows.features["label"].int2str(label) for label in rows["label"]] == [
                label for _, label in cells[split]
            ]


def test_names_of_pictures_say_no_split(tmp_path):
    names = ["cat/a-train-2.png", "cat/1.png", "dog/crash-test-1.png", "dog/toy-train-1.png"]
    cells, _ = images(tmp_path, *names)
    assert sorted(cells["train"] + cells["test"]) == [(name, name[:3]) for name in sorted(names)]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat/0.png", "dog/0.png", "cover.png"], r"cover\.png lies in no folder of its class"),
        (
            ["train/0.png", "bus/0.png"],
            r"train/0\.png lie in folders called as a split, bus/0\.png",
        ),
        (["cat/0.png", "dog/0.png", "bird/0.heic"], r"bird/0\.heic cannot be read as pictures"),
        (["cat/0.png", "dog/0.png", "dog.zip"], r"dog\.zip cannot be read as pictures"),
        (["cat/0.png", "dog/sub/0.png"], r"cat/0\.png and 1 more lie at several depths"),
        (["train/0.png", "test/0.png"], r"test/0\.png lies in no folder of its class"),
    ],
)
def test_no_picture_is_left_out_in_silence(tmp_path, names, said):
    with pytest.raises(ScenarioError, match=said) as error:
        images(tmp_path, *names)
    assert "\n" not in str(error.value)


NAMED = [f"{n}.png" for n in range(6)]


def test_labels_in_a_metadata_file_are_as_they_are_written(tmp_path):
    rows = "".join(f"{n}.png,{('01', 'NA')[n % 2]}\n" for n in range(6))
    cells, notes = images(tmp_path, *NAMED, "7.png", metadata_csv=f"file_name,label\n{rows}")
    wanted = [(f"{n}.png", ("01", "NA")[n % 2]) for n in range(6)]
    assert sorted(cells["train"] + cells["test"]) == wanted
    assert notes == ["data: 7.png are named by no metadata file, and left out"]


def test_a_metadata_file_names_pictures_of_several_splits(tmp_path):
    names = [f"{split}/{n}.png" for n in range(3) for split in ("Train", "Test")]
    rows = "".join(f"{name},{'ab'[n % 2]}\n" for n, name in enumerate(names))
    cells, _ = images(tmp_path, *names, metadata_csv=f"file_name,label\n{rows}")
    assert cells == {
        "train": [(name, "a") for name in names[::2]],
        "test": [(name, "b") for name in names[1::2]],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file_name,label\n0.png,a,\n", r"metadata\.csv, line 2: 3 fields"),
        ("file_name,label\n0.png,a\n9.png,b\n", r"line 3: there is no picture called '9\.png'"),
        ("name,label\n0.png,a\n", r"names pictures in a column 'file_name'"),
    ],
)
def test_a_metadata_file_is_read_as_strictly_as_any(tmp_path, text, said):
    with pytest.raises(ScenarioError, match=said):
        images(tmp_path, *NAMED, metadata_csv=text)


def test_splits_of_other_names_are_found_by_their_own(tmp_path):
    found, _ = splits(tmp_path, "Fit-0.csv", "fit-1.csv", "my-DEV.csv", train_split="fit",
                      test_split="dev")  # fmt: skip
    assert {name: len(rows) for name, rows in found.items()} == {"train": 6, "test": 3}
