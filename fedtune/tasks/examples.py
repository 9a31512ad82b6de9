"""What loading a task's data gives, and which column its examples are dealt by."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from fedtune.adapters.wrap import PretrainedBase
from fedtune.errors import ScenarioError
from fedtune.scenario.clients import PartitionSection
from fedtune.tasks.base import Objective, Rows
from fedtune.tasks.generation import ExactMatch
from fedtune.tasks.pixels import PixelTable
from fedtune.tasks.tokens import TokenTable

LENGTH_CLASSES = 10


@dataclass(frozen=True)
class Examples:
    """Training and test examples with the base that reads them.

    Attributes:
        base: the model, head included.
        objective: forward pass, losses, scores.
        train: the clients' examples, on the CPU.
        test: those of the central evaluation.
        rows: the rows that training examples come from, and
        classes: names of the classes; none for causal-lm.
        source: the row of each training example; None: one each, in order.
        notes: lines that the user should see.
        exact_match: how generations are scored, if they are.
    """

    base: PretrainedBase
    objective: Objective
    train: PixelTable | TokenTable
    test: PixelTable | TokenTable
    rows: Dataset
    classes: list[str]
    source: Rows | None = None
    notes: list[str] = field(default_factory=list)
    exact_match: ExactMatch | None = None


def dealt_by(examples: Examples, section: PartitionSection) -> NDArray[Any]:
    """The value of each training example that a partition deals by, (n,).

    Raises:
        ScenarioError: for a column or pattern that does not fit.
    """
    if section.by is None:
        if section.pattern is not None:
            raise ScenarioError("clients.partition.pattern: needs clients.partition.by, a column")
        return _default(examples, section)
    if section.by == "length" and "length" not in examples.rows.column_names:
        widths = examples.train.widths(np.arange(len(examples.train)))
        edges = np.quantile(widths, np.linspace(0, 1, LENGTH_CLASSES + 1)[1:-1])
        return np.searchsorted(edges, widths)
    if section.by not in examples.rows.column_names:
        found = ", ".join(examples.rows.column_names)
        raise ScenarioError(
            f"clients.partition.by = {section.by!r}: no such column; allowed: {found}, length"
        )
    values = [str(value) for value in examples.rows[section.by]]
    if section.pattern is not None:
        values = _matched(values, section.pattern)
    by = np.asarray(values)
    return by if examples.source is None else by[examples.source]


def _default(examples: Examples, section: PartitionSection) -> NDArray[Any]:
    labels = examples.train.labels
    if labels is not None and section.kind != "natural":
        return labels
    if section.kind == "iid":
        return np.zeros(len(examples.train), dtype=np.int64)
    raise ScenarioError(
        f"clients.partition.kind = {section.kind!r}: needs clients.partition.by, a column out of: "
        f"{', '.join(examples.rows.column_names)}, length"
    )


def _matched(values: list[str], pattern: str) -> list[str]:
    key = f"clients.partition.pattern = {pattern!r}"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ScenarioError(f"{key}: {error}") from None
    if compiled.groups < 1:
        raise ScenarioError(f"{key}: needs one group, (...)")
    found = [compiled.search(value) for value in values]
    if None in found:
        raise ScenarioError(f"{key}: does not match {values[found.index(None)][:60]!r}")
    return [match[1] or "" for match in found if match is not None]
