"""Rows of a task's data: a hub name, a local file or folder, or a data set saved by `datasets`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from numpy.typing import NDArray

from fedtune.errors import ScenarioError, first_line, listed
from fedtune.scenario.task import CLIENTS, TaskSection
from fedtune.tasks.bases import base_folder
from fedtune.tasks.cells import blank_notes, checked, used_columns
from fedtune.tasks.files import Source, form_of, read_file
from fedtune.tasks.folders import Sources, is_one, is_saved, read_folder, saved_splits, sources_of
from fedtune.tasks.stamps import folder_stamps, stamps
from fedtune.tasks.unused import check_used

TEST_SHARE = 0.2
OWN_TEST = f"data: no test split, so {TEST_SHARE:.0%} of the rows are kept for testing"
READ_ERRORS = (
    OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RuntimeError, DatasetsError,
)  # fmt: skip
MAX_SAID = 200
Builtin = Mapping[str, Callable[[], DatasetDict]]


def load_splits(
    task: TaskSection, needed: Iterable[str], builtin: Builtin
) -> tuple[DatasetDict, list[str]]:
    """The rows of a task as splits `train` and `test`, and lines that the user should see.

    A row of a split knows its number in its file: `own_row`.

    Args:
        task: the scenario's `[task]`.
        needed: keys of `[task]` that name columns, for the message about a missing one.
        builtin: the built-in data of this kind of task, by name.

    Raises:
        ScenarioError: for data that cannot be read, is empty, misses a column, or has a cell that
            is not what the task takes it for.
    """
    check_used(task)
    notes: list[str] = []
    try:
        splits = _both(task, _read(task, builtin, notes), notes)
    except READ_ERRORS as error:
        cause = error.__cause__ if isinstance(error, DatasetsError) else None
        reason = first_line(cause or error)[:MAX_SAID]
        raise ScenarioError(f"task.data = {task.data!r}: cannot be read ({reason})") from None
    for name, key in (("train", "train_examples"), ("test", "test_examples")):
        for column in needed:
            _check_column(column, getattr(task, column), splits[name], name)
        if not len(splits[name]):
            raise ScenarioError(f"task.data = {task.data!r}: split {name!r} is empty")
        splits[name] = _some(splits[name], getattr(task, key))
    return splits, notes


def contents(task: TaskSection) -> tuple[Any, ...]:
    """What tells the contents of a task's local data and base from others of the same names."""
    paths = [Path(named).expanduser() for named in (task.data, task.test) if named is not None]
    with suppress(ScenarioError):
        paths.append(base_folder(task.base))
    return tuple(tuple(folder_stamps(path) if path.is_dir() else stamps([path])) for path in paths)


def _read(task: TaskSection, builtin: Builtin, notes: list[str]) -> Sources:
    if task.data == CLIENTS:
        assert task.test is not None
        rows = _one(task, task.test, builtin)
        return {task.train_split: rows, task.test_split: rows}
    if task.data in builtin:
        return sources_of(builtin[task.data]())
    path = Path(task.data).expanduser()
    if task.data.startswith("builtin:"):
        raise ScenarioError(
            f"task.data = {task.data!r}: no such builtin data for {task.kind}; allowed: "
            f"{', '.join(builtin)}, a file, a folder, or a hub name"
        )
    written_as_path = task.data.startswith((".", "/", "~")) or form_of(path) is not None
    if written_as_path and not path.exists():
        raise ScenarioError(f"task.data = {task.data!r}: no such file or folder")
    used = used_columns(task)
    if task.test == task.data:
        rows = _one(task, task.data, {})
        return {"train": rows, "test": rows}
    if path.is_file():
        files = {"train": path}
        if task.test is not None:
            files["test"] = Path(task.test).expanduser()
        return {name: read_file(task, file, used) for name, file in files.items()}
    if task.test is not None:
        raise ScenarioError(f"task.test = {task.test!r}: task.data is no file; use task.test_split")
    if path.is_dir():
        return read_folder(task, path, used, notes)
    found = load_dataset(task.data, task.subset)
    return sources_of({"train": found} if isinstance(found, Dataset) else found)


def _one(task: TaskSection, source: str, builtin: Builtin) -> Source:
    """The test rows of a file, a folder or built-in data."""
    if source in builtin:
        return sources_of(builtin[source]())["test"]
    path = Path(source).expanduser()
    if is_saved(path):
        return saved_splits(path)["train" if is_one(path) else task.test_split]
    return read_file(task, path, used_columns(task))


def _both(task: TaskSection, found: Sources, notes: list[str]) -> DatasetDict:
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
    train = checked(task, found[names["train"]])
    notes += blank_notes(task, train, "train")
    if names["test"] in found:
        test = checked(task, found[names["test"]])
        notes += blank_notes(task, test, "test")
        return DatasetDict({"train": train, "test": test})
    if len(train) < 2:
        raise ScenarioError(f"task.data = {task.data!r}: too few rows to keep some for testing")
    notes.append(OWN_TEST)
    order = np.random.default_rng(0).permutation(len(train))
    tests = math.ceil(TEST_SHARE * len(train))
    return DatasetDict(
        {"train": chosen(train, order[tests:]), "test": chosen(train, order[:tests])}
    )


def _some(split: Dataset, count: int | None) -> Dataset:
    if count is None or count >= len(split):
        return split
    return chosen(split, np.sort(np.random.default_rng(0).permutation(len(split))[:count]))


def chosen(rows: Dataset, numbers: NDArray[np.int64]) -> Dataset:
    """Some of the rows, which know what their numbers were (`select` forgets those of a run)."""
    return rows._select_with_indices_mapping(numbers)


def own_row(rows: Dataset, row: int) -> int:
    """The number, in the file or data set, of a row of a split."""
    return row if rows._indices is None else int(rows._indices.column(0)[row].as_py())


def _check_column(key: str, column: str | None, split: Dataset, name: str) -> None:
    if column is not None and column not in split.column_names:
        found = listed(split.column_names)
        raise ScenarioError(f"task.{key} = {column!r}: no such column in {name}; it has: {found}")
