"""Rows of a task's data: a hub name, a local file or folder, or a data set saved by `datasets`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Value,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetsError

from fedtune.errors import ScenarioError, first_line
from fedtune.scenario.task import CLIENTS, TaskSection
from fedtune.tasks.unused import check_used

TEST_SHARE = 0.2
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "delimiter": "\t", "quoting": 3}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {}),
}
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, DatasetsError)
SAVED = ("dataset_dict.json", "state.json")


def load_splits(
    task: TaskSection, needed: Iterable[str], builtin: Mapping[str, Callable[[], DatasetDict]]
) -> tuple[DatasetDict, list[str]]:
    """The rows of a task as splits `train` and `test`, and lines that the user should see.

    Args:
        task: the scenario's `[task]`.
        needed: keys of `[task]` that name columns, for the message about a missing one.
        builtin: the built-in data of this kind of task, by name.

    Raises:
        ScenarioError: for data that cannot be read, is empty or misses a column.
    """
    check_used(task)
    notes: list[str] = []
    try:
        splits = _both(task, _read(task, builtin), notes)
    except READ_ERRORS as error:
        cause = error.__cause__ if isinstance(error, DatasetsError) else None
        reason = first_line(cause or error)
        raise ScenarioError(f"task.data = {task.data!r}: cannot be read ({reason})") from None
    for name, key in (("train", "train_examples"), ("test", "test_examples")):
        for column in needed:
            _check_column(column, getattr(task, column), splits[name], name)
        if not len(splits[name]):
            raise ScenarioError(f"task.data = {task.data!r}: split {name!r} is empty")
        splits[name] = _some(splits[name], getattr(task, key))
    return splits, notes


def _read(task: TaskSection, builtin: Mapping[str, Callable[[], DatasetDict]]) -> DatasetDict:
    if task.data == CLIENTS:
        assert task.test is not None
        rows = _one(task, task.test, builtin)
        return DatasetDict({task.train_split: rows, task.test_split: rows})
    if task.data in builtin:
        return builtin[task.data]()
    path = Path(task.data).expanduser()
    if task.data.startswith("builtin:"):
        raise ScenarioError(
            f"task.data = {task.data!r}: no such builtin data for {task.kind}; allowed: "
            f"{', '.join(builtin)}, a file, a folder, or a hub name"
        )
    written_as_path = task.data.startswith((".", "/", "~")) or path.suffix in FORMATS
    if written_as_path and not path.exists():
        raise ScenarioError(f"task.data = {task.data!r}: no such file or folder")
    if task.test == task.data:
        rows = _one(task, task.data, {})
        return DatasetDict({"train": rows, "test": rows})
    if path.is_file():
        files = {"train": path}
        if task.test is not None:
            files["test"] = Path(task.test).expanduser()
        return DatasetDict({name: _file(task, file) for name, file in files.items()})
    if task.test is not None:
        raise ScenarioError(f"task.test = {task.test!r}: task.data is no file; use task.test_split")
    if path.is_dir():
        return _folder(task, path)
    found = load_dataset(task.data, task.subset)
    return DatasetDict({"train": found}) if isinstance(found, Dataset) else found


def _one(
    task: TaskSection, source: str, builtin: Mapping[str, Callable[[], DatasetDict]]
) -> Dataset:
    """The test rows of a file, a folder or built-in data."""
    if source in builtin:
        return builtin[source]()["test"]
    path = Path(source).expanduser()
    if any((path / name).exists() for name in SAVED):
        found = load_from_disk(str(path))
        return found[task.test_split] if isinstance(found, DatasetDict) else found
    return _file(task, path)


def _folder(task: TaskSection, path: Path) -> DatasetDict:
    if any((path / name).exists() for name in SAVED):
        found = load_from_disk(str(path))
        return DatasetDict({"train": found}) if isinstance(found, Dataset) else found
    files = {file.stem: file for file in sorted(path.iterdir()) if file.suffix in FORMATS}
    if task.train_split in files:
        wanted = [name for name in (task.train_split, task.test_split) if name in files]
        if task.test_split not in files and task.test_split != "test":
            raise ScenarioError(
                f"task.test_split = {task.test_split!r}: {task.data} has: {', '.join(files)}"
            )
        return DatasetDict({name: _file(task, files[name]) for name in wanted})
    found = load_dataset(str(path))
    return DatasetDict({"train": found}) if isinstance(found, Dataset) else found


def _file(task: TaskSection, path: Path) -> Dataset:
    if not path.is_file() or path.suffix not in FORMATS:
        raise ScenarioError(
            f"task.data: {str(path)!r} is no file that can be read; allowed: {', '.join(FORMATS)}"
        )
    builder, options = FORMATS[path.suffix]
    options = dict(options)
    if builder == "csv":
        reading = {key: value for key, value in options.items() if key != "keep_default_na"}
        names = task.columns or list(pd.read_csv(path, nrows=0, **reading).columns)
        options["features"] = Features({name: Value("string") for name in names})
        options["column_names"] = task.columns
    if builder == "text" and task.pattern is not None:
        options["sample_by"] = "document"
    rows: Dataset = load_dataset(builder, data_files=str(path), split="train", **options)
    return rows if builder != "text" else _rows_of_text(task, rows)


def _rows_of_text(task: TaskSection, lines: Dataset) -> Dataset:
    """The rows of a txt file: its matches of `task.pattern`, else its lines that are not blank."""
    if task.pattern is None:
        return lines.filter(lambda line: bool(line["text"].strip()))
    try:
        pattern = re.compile(task.pattern)
    except re.error as error:
        raise ScenarioError(f"task.pattern = {task.pattern!r}: {error}") from None
    if not pattern.groupindex:
        raise ScenarioError(f"task.pattern = {task.pattern!r}: needs named groups, (?P<text>...)")

    def matches(batch: dict[str, list[str]]) -> dict[str, list[str]]:
        found = [match for text in batch["text"] for match in pattern.finditer(text)]
        return {name: [match[name] or "" for match in found] for name in pattern.groupindex}

    return lines.map(matches, batched=True, remove_columns=["text"])


def _both(task: TaskSection, found: DatasetDict, notes: list[str]) -> DatasetDict:
    single = set(found) <= {"train", "test"} and Path(task.data).expanduser().is_file()
    names = {
        "train": "train" if single else task.train_split,
        "test": "test" if single else task.test_split,
    }
    for key, name in names.items():
        if name not in found and (key == "train" or name != "test"):
            raise ScenarioError(
                f"task.{key}_split = {name!r}: {task.data} has: {', '.join(sorted(found))}"
            )
    train = found[names["train"]]
    if names["test"] in found:
        return DatasetDict({"train": train, "test": found[names["test"]]})
    if len(train) < 2:
        raise ScenarioError(f"task.data = {task.data!r}: too few rows to keep some for testing")
    notes.append(f"data: no test split, so {TEST_SHARE:.0%} of the rows are kept for testing")
    return train.train_test_split(test_size=TEST_SHARE, seed=0)


def _some(split: Dataset, count: int | None) -> Dataset:
    if count is None or count >= len(split):
        return split
    return split.select(np.sort(np.random.default_rng(0).permutation(len(split))[:count]))


def _check_column(key: str, column: str | None, split: Dataset, name: str) -> None:
    if column is not None and column not in split.column_names:
        found = ", ".join(split.column_names)
        raise ScenarioError(f"task.{key} = {column!r}: no such column in {name}; it has: {found}")
