"""What a rule sees of a round, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fedtune.rules.gram import (
    BLOCK_BYTES,
    by_columns,
    centred_gram_of,
    column_blocks,
    combination,
    distances_between,
    distances_of,
    fill,
    gram_of,
    norms_of,
)


@dataclass(frozen=True)
class Updates:
    """The replies of a round, possibly after pre-aggregation.

    Attributes:
        replies: (n, d), row k the difference of client k's tensors to what was broadcast.
        weights: (n,) float64 with sum 1; only `mean` heeds them.
        clients: their logical ids, rising.
        server_round: number of the round, and
        seed: of the run, for rules that draw.
        steps: what pre-aggregation made of the replies, one linear map after another, float64:
            (m, k), or (m,) that scales each row; none: the replies themselves.
        trusted: (d,), the update from the server's own data, where a rule asks for one.
        notes: numbers for the round's metrics, from pre-aggregation.
    """

    replies: Tensor
    weights: Tensor
    clients: Sequence[int] = ()
    server_round: int = 1
    seed: int = 0
    steps: tuple[Tensor, ...] = ()
    trusted: Tensor | None = None
    notes: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.steps[-1]) if self.steps else len(self.replies)

    @cached_property
    def mixing(self) -> Tensor | None:
        """(m, n) float64: the rule's rows are mixing · replies. None: the replies themselves."""
        start = torch.eye(len(self.replies), dtype=torch.float64)
        return reduce(_stepped, self.steps, start) if self.steps else None

    @cached_property
    def rows(self) -> Tensor:
        """The rows that a rule aggregates, (m, d), in the replies' dtype."""
        if not self.steps:
            return self.replies
        return fill(self.replies.new_empty(len(self), self.replies.shape[1]), self.blocks())

    def blocks(self) -> Iterator[Tensor]:
        """The rows in float64, by blocks of columns, (m, w)."""
        steps = [step.to(self.replies.device) for step in self.steps]
        for block in column_blocks(self.replies):
            yield reduce(_stepped, steps, block.double())

    @cached_property
    def norms(self) -> Tensor:
        """Lengths of the rows, (m,) float64 on the CPU; an update of zero has none."""
        return norms_of(self.blocks)

    @cached_property
    def gram(self) -> Tensor:
        """Rows · rowsᵀ, (m, m) float64 on the CPU."""
        return gram_of(self.blocks)

    @cached_property
    def centred(self) -> Tensor:
        """The same of the rows less a point near most of them."""
        return centred_gram_of(self.blocks)

    @property
    def distances(self) -> Tensor:
        """Squared Euclidean distances between the rows, (m, m) float64."""
        return self._distances.clone()

    @cached_property
    def _distances(self) -> Tensor:
        return distances_between(self.blocks, self.centred)

    def mixed(
        self,
        mixing: Tensor,
        centred: Tensor | None = None,
        notes: Mapping[str, float] | None = None,
    ) -> Updates:
        """These updates with each row replaced by a combination of rows.

        Args:
            mixing: (k, m) float64, or (m,) that scales each row.
            centred: of the new rows, where it is known already.
            notes: more numbers for the round's metrics.
        """
        steps, notes = (*self.steps, mixing), {**self.notes, **(notes or {})}
        made = replace(self, steps=steps, notes=notes)
        if centred is not None:
            made.__dict__["centred"] = centred
        return made

    def replaced(self, rows: Mapping[int, Tensor]) -> Updates:
        """Updates (d,) of other clients, by id, each of the same weight, in place of these."""
        weights = self.weights.new_full((len(rows),), 1.0 / len(rows))
        replies = torch.stack(list(rows.values()))
        return replace(self, replies=replies, weights=weights, clients=list(rows))

    def combined(self, coefficients: Tensor) -> Aggregate:
        """Σ_k c_k row_k, with its coefficients over the replies.

        Args:
            coefficients: (m,) float64.
        """
        if self.mixing is None:
            return Aggregate(combination(coefficients, self.replies), coefficients)
        *steps, last = self.steps
        if last.ndim == 1:
            steps += [(coefficients * last)[None]]
        else:
            kept = coefficients.nonzero().ravel()
            steps += [last[kept], coefficients[kept][None]]
        summed = replace(self, steps=tuple(steps)).rows[0]
        return Aggregate(summed, coefficients @ self.mixing)


@runtime_checkable
class Stateful(Protocol):
    """A rule that remembers something from round to round."""

    def state_dict(self) -> dict[str, Tensor]:
        """What it remembers."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take it back."""
        ...


@dataclass(frozen=True)
class Aggregate:
    """What a rule gives.

    Attributes:
        update: (d,), in the replies' dtype.
        coefficients: (n,) float64 with update = coefficients · replies, where it is a linear
            combination of them; else None.
        notes: numbers for the round's metrics.
    """

    update: Tensor
    coefficients: Tensor | None = None
    notes: dict[str, float] = field(default_factory=dict)


def _stepped(rows: Tensor, step: Tensor) -> Tensor:
    return step[:, None] * rows if step.ndim == 1 else step @ rows


def centred_of(matrix: Tensor) -> Tensor:
    """X · Xᵀ of the rows less a point near most of them, (n, n) float64 on the CPU."""
    return Updates(matrix, matrix.new_empty(0)).centred


__all__ = [
    "BLOCK_BYTES",
    "Aggregate",
    "Stateful",
    "Updates",
    "by_columns",
    "centred_of",
    "column_blocks",
    "distances_of",
]
