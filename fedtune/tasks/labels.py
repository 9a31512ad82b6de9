"""Classes of the rows: each file's numbers become names by its own list, and meet by name."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from numpy.typing import NDArray

from fedtune.errors import ScenarioError, quoted
from fedtune.scenario.task import TaskSection
from fedtune.tasks.bases import names_of_base
from fedtune.tasks.heads import in_order_of


def keep_single_labels(task: TaskSection, split: Dataset) -> Dataset:
    """The rows with one label, where a label may be a list with a separator."""
    separator = task.label_separator
    if separator is None:
        return split
    values = label_names(task, split)
    kept = [i for i, value in enumerate(values) if separator not in value]
    if not kept:
        raise ScenarioError(f"task.label_separator = {separator!r}: every row has several labels")
    return split.select(kept)


def label_names(task: TaskSection, rows: Dataset) -> list[str]:
    """The name of each row's class, by the rows' own list of classes where they carry one."""
    own = own_names(task, rows)
    return [own[value] if own else str(value) for value in rows[task.label]]


def own_names(task: TaskSection, rows: Dataset) -> list[str] | None:
    """The list of classes that rows carry with them."""
    feature = rows.features[task.label]
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def encode_labels(
    task: TaskSection, splits: DatasetDict, drawn: bool = False
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """Classes of the rows of both splits as numbers, and their names.

    The order is that of the base's own head where it is for classes of these names; else that of
    `task.labels`, else of the training rows' own list, else of (length, name).

    Args:
        task: names the column.
        splits: whose labels were checked when they were read.
        drawn: whether the test rows were drawn from the training rows here.

    Raises:
        ScenarioError: for a label that is not in training, or not in `task.labels`; for one class.
    """
    columns = {name: label_names(task, split) for name, split in splits.items()}
    found = sorted(set(columns["train"]), key=lambda name: (len(name), name))
    names = list(task.labels or own_names(task, splits["train"]) or found)
    names = in_order_of(names_of_base(task), names, ordered=task.labels is not None)
    index = {name: i for i, name in enumerate(names)}
    for name, values in columns.items():
        if unknown := set(values) - index.keys():
            raise _unknown(task, splits, name, quoted(min(unknown)), drawn)
    if len(names) < 2:
        raise _fault(task, f"every row of training is of class {quoted(names[0])}; a task has two")
    encoded = {
        name: np.asarray([index[value] for value in values], dtype=np.int64)
        for name, values in columns.items()
    }
    return encoded, names


def _unknown(
    task: TaskSection, splits: DatasetDict, split: str, name: str, drawn: bool
) -> ScenarioError:
    """What is wrong with a class that is in the rows of a split and not in the list."""
    if task.labels is not None:
        reason = f"{name} is not in task.labels"
    elif split == "train":
        reason = f"{name} is not in the training rows' own list of classes"
    elif drawn:
        reason = (
            f"{name} is not in training: all its rows were drawn for testing; name the classes in "
            "task.labels, or give a test split"
        )
    elif task.train_examples == len(splits["train"]):
        reason = (
            f"{name} is not in the {task.train_examples} rows of training that "
            "task.train_examples draws; let it draw more, or name the classes in task.labels"
        )
    elif len({own_names(task, rows) is None for rows in splits.values()}) > 1:
        reason = f"{name} is not in training; only one of training and test names its numbers"
    else:
        reason = f"{name} is not in training; name it in task.labels if it is a class nevertheless"
    return _fault(task, reason)


def _fault(task: TaskSection, reason: str) -> ScenarioError:
    return ScenarioError(f"task.label = {task.label!r}: {reason}")
