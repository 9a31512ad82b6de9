"""Values of the rows: classes as numbers, and whether they are of the wanted type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray

from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection


def keep_single_labels(task: TaskSection, split: Dataset) -> Dataset:
    """The rows with one label, where a label may be a list with a separator."""
    separator = task.label_separator
    if separator is None:
        return split
    values = split[task.label]
    kept = [i for i, value in enumerate(values) if separator not in str(value)]
    if not kept:
        raise ScenarioError(f"task.label_separator = {separator!r}: every row has several labels")
    return split.select(kept)


def encode_labels(
    task: TaskSection, splits: DatasetDict
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """Classes of the rows of both splits as numbers, and their names.

    The order is that of `task.labels`, else of the data set's own ClassLabel, else of (length,
    name).

    Raises:
        ScenarioError: for a label that is no text or number, or is not in training.
    """
    feature = splits["train"].features[task.label]
    own = getattr(feature, "names", None)
    columns = {name: list(split[task.label]) for name, split in splits.items()}
    for values in columns.values():
        check_values(task, task.label, values, int | str)
    if task.labels is not None and own is not None:
        columns = {name: [own[value] for value in values] for name, values in columns.items()}
        own = None
    found = sorted({str(v) for v in columns["train"]}, key=lambda n: (len(n), n))
    names = list(task.labels or own or found)
    index = {name: i for i, name in enumerate(names)}
    encoded = {}
    for name, values in columns.items():
        if own:
            encoded[name] = _in_range(np.asarray(values, dtype=np.int64), task, len(names))
            continue
        if unknown := {str(v) for v in values} - index.keys():
            where = "training" if task.labels is None else "task.labels"
            raise ScenarioError(f"task.label = {task.label!r}: {min(unknown)} is not in {where}")
        encoded[name] = np.asarray([index[str(v)] for v in values], dtype=np.int64)
    return encoded, names


def check_values(
    task: TaskSection, column: str, values: Iterable[Any], allowed: Any, first: int = 0
) -> None:
    """Raise `ScenarioError` at the first value of another type; rows count from `first`."""
    for row, value in enumerate(values, first):
        if not isinstance(value, allowed):
            raise ScenarioError(
                f"task.data = {task.data!r}: column {column!r} holds {value!r} in row {row}"
            )


def _in_range(labels: NDArray[np.int64], task: TaskSection, classes: int) -> NDArray[np.int64]:
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ScenarioError(
            f"task.label = {task.label!r}: holds {labels.min()} to {labels.max()} for "
            f"{classes} classes"
        )
    return labels
