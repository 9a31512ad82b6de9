"""Krum, Multi-Krum (Blanchard et al., 2017) and Bulyan (El Mhamdi et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedtune.rules.base import Aggregate, Updates, by_columns
from fedtune.rules.coordinates import meamed

TIE = 1 + 1e-9


@dataclass(frozen=True)
class Krum:
    """The update with the least sum of squared distances to its n - f - 2 nearest.

    Attributes:
        f: Byzantine clients; lowered to (n - 3) / 2 where replies are fewer than 2f + 3.
    """

    f: int = 0

    def __call__(self, updates: Updates) -> Aggregate:
        """A linear combination with one coefficient."""
        return _best(updates, self.f, 1)


@dataclass(frozen=True)
class MultiKrum:
    """The mean of the q updates with the best Krum scores.

    Attributes:
        f: Byzantine clients; scores are for (n - 3) / 2 where replies are fewer than 2f + 3.
        q: how many; by default n - f, so that f = 0 is the mean.
    """

    f: int = 0
    q: int | None = None

    def __call__(self, updates: Updates) -> Aggregate:
        """One client, one vote."""
        n = len(updates)
        count = self.q if self.q is not None else n - self.f
        return _best(updates, self.f, max(1, min(n, count)))


@dataclass(frozen=True)
class Bulyan:
    """Of n - 2f updates chosen by Krum, by coordinate the mean of the n - 4f nearest the median.

    Attributes:
        f: Byzantine clients; lowered to (n - 3) / 4 where replies are fewer than 4f + 3.
    """

    f: int = 0

    def __call__(self, updates: Updates) -> Aggregate:
        """The chosen clients are in the notes by number only: the result is not linear."""
        n = len(updates)
        f = max(0, min(self.f, (n - 3) // 4))
        left, chosen = list(range(n)), []
        distances, centred = updates.distances, updates.centred
        for _ in range(n - 2 * f):
            inside, about = (one[left][:, left] for one in (distances, centred))
            chosen.append(left.pop(krum_order(inside, f, about)[0]))
        kept, count = sorted(chosen), n - 4 * f
        update = by_columns(updates.rows, lambda block: meamed(block[kept], count))
        return Aggregate(update, notes={"f_used": float(f)})


def krum_order(distances: Tensor, f: int, centred: Tensor | None = None) -> list[int]:
    """Rows by rising score: the sum of squared distances to the n - f - 2 nearest (at least one).

    Two rows that are each other's only neighbour have one score; then the sum of all distances
    decides, so that the order of clients does not.

    Args:
        distances: squared.
        f: Byzantine rows.
        centred: Gram matrix of the rows less a point near most of them. With it the sums of all
            distances are compared without what they share: a distant row drowns no difference.
    """
    n = len(distances)
    if n == 1:
        return [0]
    others = distances.clone().fill_diagonal_(torch.inf).sort(1).values[:, : n - 1]
    scores, totals = others[:, : max(1, min(n - 1, n - f - 2))].sum(1), others.sum(1)
    if centred is not None:
        totals = n * centred.diagonal() - 2.0 * centred.sum(1)
    order = scores.argsort(stable=True)
    rising = scores[order]
    steps = (rising[1:] > TIE * rising[:-1]).cumsum(0)
    rank = torch.zeros(n, dtype=torch.int64).index_copy_(0, order[1:], steps)
    return [int(i) for i in np.lexsort((totals.numpy(), rank.numpy()))]


def _best(updates: Updates, f: int, count: int) -> Aggregate:
    """The mean of the rows with the best scores."""
    n = len(updates)
    f = max(0, min(f, (n - 3) // 2))
    coefficients = torch.zeros(n, dtype=torch.float64)
    order = krum_order(updates.distances, f, updates.centred)
    coefficients[order[:count]] = 1.0 / count
    found = updates.combined(coefficients)
    return Aggregate(found.update, found.coefficients, {"f_used": float(f)})
