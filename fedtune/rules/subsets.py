"""Rules that keep a subset: minimum diameter averaging, and divide-and-conquer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedtune.errors import RunError
from fedtune.randomness import generator
from fedtune.rules.base import Aggregate, Updates
from fedtune.rules.gram import centred_gram_of

MOST_REMOVED = 16


@dataclass(frozen=True)
class MDA:
    """The mean of the n - f updates of least diameter (Rousseeuw, 1985; El Mhamdi et al., 2020).

    Exact in 2^f steps: of the two ends of a set's diameter one must go, or nothing improves. Of
    sets with one diameter, the one with the least sum of squared distances.

    Attributes:
        f: Byzantine clients, at most 16.
    """

    f: int = 0

    def __call__(self, updates: Updates) -> Aggregate:
        """f = 0 is the mean."""
        n = len(updates)
        f = min(self.f, n - 1)
        if f > MOST_REMOVED:
            raise RunError(f"rule 'mda' with f = {f}: needs 2^f steps; at most f = {MOST_REMOVED}")
        *_, kept = _least_diameter(updates.distances, list(range(n)), f)
        coefficients = torch.zeros(n, dtype=torch.float64)
        coefficients[kept] = 1.0 / len(kept)
        return updates.combined(coefficients)


@dataclass(frozen=True)
class DnC:
    """Divide-and-conquer (Shejwalkar and Houmansadr, 2021): a spectral filter on some coordinates.

    In each iteration `coordinates` are drawn, the updates centred on them, and those with the
    largest squared projection on the top singular vector are dropped; the mean of what no iteration
    dropped.

    Attributes:
        f: Byzantine clients.
        iterations: how often.
        coordinates: drawn in each.
        factor: of f, how many are dropped in each iteration.
    """

    f: int = 0
    iterations: int = 5
    coordinates: int = 10_000
    factor: float = 1.0

    def __call__(self, updates: Updates) -> Aggregate:
        """Where iterations leave nobody in common, the last one decides."""
        rows = updates.rows
        n, d = rows.shape
        dropped = max(0, min(n - 1, round(self.factor * self.f)))
        kept = torch.ones(n, dtype=torch.bool)
        for iteration in range(self.iterations):
            draw = generator("dnc", updates.seed, updates.server_round, iteration)
            size = min(d, self.coordinates)
            chosen = torch.from_numpy(draw.choice(d, size, replace=False, shuffle=False))
            part = rows[:, chosen.to(rows.device)].double()
            good = torch.ones(n, dtype=torch.bool)
            good[_by_projection(part)[:dropped]] = False
            kept = kept & good if bool((kept & good).any()) else good
        return updates.combined(kept.double() / kept.sum())


def _by_projection(rows: Tensor) -> Tensor:
    """Rows by falling square of their projection on the top singular vector of the centred rows.

    Their projections p are of the rows less a point near most of them, so that the order of
    (p - p̄)² is that of p (p - 2p̄), in which honest rows do not drown where p̄ is an attacker's.
    """
    gram = centred_gram_of(lambda: iter([rows]))
    away = gram - gram.mean(0)
    vector = torch.linalg.eigh(away - away.mean(1, keepdim=True)).eigenvectors[:, -1]
    along = gram @ vector
    return torch.argsort(along * (along - 2.0 * along.mean()), descending=True, stable=True)


Found = tuple[float, float, list[int]]


def _least_diameter(distances: Tensor, kept: list[int], remove: int) -> Found:
    inside = distances[kept][:, kept]
    diameter = float(inside.max())
    if not remove:
        return diameter, float(inside.sum()), kept
    first, second = divmod(int(inside.argmax()), len(kept))
    options = [
        _least_diameter(distances, kept[:end] + kept[end + 1 :], remove - 1)
        for end in sorted({first, second})
    ]
    return min(options, key=lambda option: option[:2])
