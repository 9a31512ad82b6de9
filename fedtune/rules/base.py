"""What a rule sees of a round, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

BLOCK_BYTES = {"cpu": 2 << 20}  # fits a cache
OTHER_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Updates:
    """The replies of a round, possibly after pre-aggregation.

    Attributes:
        replies: (n, d), row k the difference of client k's tensors to what was broadcast.
        weights: (n,) float64 with sum 1; only `mean` heeds them.
        clients: their logical ids, rising.
        server_round: number of the round, and
        seed: of the run, for rules that draw.
        mixing: (m, n) float64, what pre-aggregation made of the replies: the rule's rows are
            mixing · replies. None: the replies themselves.
        trusted: (d,), the update from the server's own data, where a rule asks for one.
    """

    replies: Tensor
    weights: Tensor
    clients: Sequence[int] = ()
    server_round: int = 1
    seed: int = 0
    mixing: Tensor | None = None
    trusted: Tensor | None = None

    def __len__(self) -> int:
        return len(self.replies) if self.mixing is None else len(self.mixing)

    @cached_property
    def rows(self) -> Tensor:
        """The rows that a rule aggregates, (m, d), in the replies' dtype."""
        return self.replies if self.mixing is None else self.mixing.to(self.replies) @ self.replies

    @property
    def gram(self) -> Tensor:
        """Rows · rowsᵀ, (m, m) float64 on the CPU."""
        return self._grams[0]

    @property
    def distances(self) -> Tensor:
        """Squared Euclidean distances between the rows, (m, m) float64."""
        return distances_of(self._grams[1])

    @cached_property
    def _grams(self) -> tuple[Tensor, Tensor]:
        """One pass over the replies serves every rule."""
        return grams_of(self.replies)

    def mixed(self, mixing: Tensor) -> Updates:
        """These updates with each row replaced by a combination of rows.

        Args:
            mixing: (k, m) float64.
        """
        total = mixing if self.mixing is None else mixing @ self.mixing
        made = replace(self, mixing=total)
        gram, centred = (mixing @ one @ mixing.T for one in self._grams)
        keeps_means = bool(torch.allclose(mixing.sum(1), mixing.new_ones(len(mixing)), atol=1e-12))
        made.__dict__["_grams"] = (gram, centred if keeps_means else gram)
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
        over = coefficients if self.mixing is None else coefficients @ self.mixing
        return Aggregate(over.to(self.replies) @ self.replies, over)


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


def grams_of(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """X · Xᵀ, and the same of X less the mean of its rows, both (n, n) float64 on the CPU.

    Accumulated in float64 over blocks of columns, so no float64 copy of X is held. Distances are
    taken from the second: what all updates have in common cancels before it is squared.
    """
    n = len(matrix)
    centred = torch.zeros(n, n, dtype=torch.float64, device=matrix.device)
    along = torch.zeros(n, dtype=torch.float64, device=matrix.device)
    common = torch.zeros((), dtype=torch.float64, device=matrix.device)
    for block in column_blocks(matrix):
        block = block.double()
        mean = block.mean(0)
        block = block - mean
        centred.addmm_(block, block.T)
        along += block @ mean
        common += mean @ mean
    centred = (centred + centred.T) / 2
    return (centred + along[:, None] + along[None, :] + common).cpu(), centred.cpu()


def column_blocks(matrix: Tensor) -> Iterator[Tensor]:
    """Views of consecutive columns of (n, d), each so small that work on it stays in cache."""
    yield from matrix.split(_width(matrix), dim=1)


def _width(matrix: Tensor) -> int:
    return max(1, BLOCK_BYTES.get(matrix.device.type, OTHER_BLOCK_BYTES) // (8 * len(matrix)))


def by_columns(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of columns, (n, w) to (w,), over all of (n, d): the intermediates stay small.

    Results go to one tensor at once: kept apart, they would split the memory that blocks reuse.
    """
    found = matrix.new_empty(matrix.shape[1])
    for part, block in zip(found.split(_width(matrix)), column_blocks(matrix), strict=True):
        part.copy_(function(block))
    return found


def distances_of(gram: Tensor) -> Tensor:
    """Squared Euclidean distances between rows, of their Gram matrix."""
    norms = gram.diagonal()
    found = (norms[:, None] + norms[None, :] - 2.0 * gram).clamp_min(0.0)
    return found.fill_diagonal_(0.0)
