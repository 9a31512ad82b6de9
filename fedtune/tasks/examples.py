"""What loading a task's data gives, and which column its examples are dealt by."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from fedtune.adapters.wrap import PretrainedBase
from fedtune.errors import ScenarioError, listed, quoted
from fedtune.scenario.clients import PartitionSection
from fedtune.tasks.base import Objective, Rows
from fedtune.tasks.generation import ExactMatch
from fedtune.tasks.pixels import PixelTable
from fedtune.tasks.tokens import TokenTable

LENGTH_CLASSES, NO_ID = 10, ""
TEXTS = "UO"  # kinds of arrays that hold texts
NAMELESS = "examples name no client and are left out"


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
        left_out: what was left out of the data, as the end of a sentence, and how many of them.
        files: those that the rows know by name only.
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
    left_out: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def dealt_by(examples: Examples, section: PartitionSection) -> NDArray[Any]:
    """The value of each training example that a partition deals by, (n,).

    A missing or blank cell, or match, is `NO_ID` where it would name a natural client.

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
        raise ScenarioError(
            f"clients.partition.by = {section.by!r}: no such column; allowed: "
            f"{listed(examples.rows.column_names)}, length"
        )
    values = [_id(value, section) for value in examples.rows[section.by]]
    if section.pattern is not None:
        values = _matched(values, section)
    by = as_values(values)
    return by if examples.source is None else by[examples.source]


def of_no_client(by: NDArray[Any] | None, section: PartitionSection, left: int) -> dict[str, int]:
    """How many of the training examples that no client holds are so for which reason.

    Args:
        by: the value of each that it is dealt by, where clients are natural.
        section: the scenario's `clients.partition`.
        left: how many examples no client holds.
    """
    natural = section.kind == "natural" and by is not None and by.dtype.kind in TEXTS
    nameless = int(np.sum(by == NO_ID)) if natural else 0
    found = {NAMELESS: nameless, "examples are of no client": left - nameless}
    return {what: count for what, count in found.items() if count > 0}


def _id(value: Any, section: PartitionSection) -> str:
    """A cell as text, others as others; of a natural client, empty where it names none."""
    natural = section.kind == "natural"
    strange = "surrogateescape" if natural else "backslashreplace"  # Arrow takes no surrogates
    text = value.decode("utf-8", strange) if isinstance(value, bytes) else str(value)
    absent = value is None or value != value or not text.strip()  # NaN is none, too
    return NO_ID if natural and absent else text


def as_values(values: list[str]) -> NDArray[Any]:
    """Texts as an array; as objects where NumPy would drop what some of them end with."""
    dropped = any(value.endswith("\0") for value in values)
    return np.asarray(values, dtype=object if dropped else None)


def _default(examples: Examples, section: PartitionSection) -> NDArray[Any]:
    labels = examples.train.labels
    if labels is not None and section.kind != "natural":
        return labels
    if section.kind == "iid":
        return np.zeros(len(examples.train), dtype=np.int64)
    raise ScenarioError(
        f"clients.partition.kind = {section.kind!r}: needs clients.partition.by, a column out of: "
        f"{listed(examples.rows.column_names)}, length"
    )


def _matched(values: list[str], section: PartitionSection) -> list[str]:
    key = f"clients.partition.pattern = {section.pattern!r}"
    try:
        compiled = re.compile(section.pattern or "")
    except re.error as error:
        raise ScenarioError(f"{key}: {error}") from None
    if compiled.groups < 1:
        raise ScenarioError(f"{key}: needs one group, (...)")
    found = []
    for value in values:
        match = compiled.search(value)
        if match is None and (value or section.kind != "natural"):
            raise ScenarioError(f"{key}: does not match {quoted(value)}")
        found.append(match[1] or NO_ID if match is not None else NO_ID)
    return found
