"""Rules that keep a subset: minimum diameter averaging, and divide-and-conquer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedtune.errors import RunError
from fedtune.randomness import generator
from fedtune.rules.base import Aggregate, Updates
from fedtune.rules.gram import centred_gram_of

MOST_REMOVED = 16
MAX_TRIED = 1000
TIE = 1 + 1e-9


@dataclass(frozen=True)
class MDA:
    """The mean of the n - f updates of least diameter (Rousseeuw, 1985; El Mhamdi et al., 2020).

    Exact in 2^f steps: of the two ends of a set's diameter one must go, or nothing improves. Of
    sets with one diameter, the one with the least sum of squared distances; of those, the one whose
    mean is least in the first number in which they differ, so that the order of clients does not
    decide.

    Attributes:
        f: Byzantine clients, at most 16; lowered to (n - 1) / 2 where replies are too few.
    """

    f: int = 0

    def __call__(self, updates: Updates) -> Aggregate:
        """f = 0 is the mean."""
        n = len(updates)
        f = min(self.f, (n - 1) // 2)
        if f > MOST_REMOVED:
            raise RunError(f"rule 'mda' with f = {f}: needs 2^f steps; at most f = {MOST_REMOVED}")
        tied = least_diameter_sets(updates.distances.numpy(), f)
        means = torch.zeros(len(tied), n, dtype=torch.float64)
        for row, kept in zip(means, tied, strict=True):
            row[list(kept)] = 1.0 / len(kept)
        found = updates.combined(means[_least(updates, means)])
        return Aggregate(found.update, found.coefficients, {"f_used": float(f)})


@dataclass(frozen=True)
class DnC:
    """Divide-and-conquer (Shejwalkar and Houmansadr, 2021): a spectral filter on some coordinates.

    In each iteration `coordinates` are drawn, the updates centred on them, and those with the
    largest squared projection on the top singular vector are dropped; the mean of what no iteration
    dropped.

    Attributes:
        f: Byzantine clients; lowered to (n - 1) / 2 where replies are too few.
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
        f = min(self.f, (n - 1) // 2)
        dropped = max(0, min(n - 1, round(self.factor * f)))
        kept = torch.ones(n, dtype=torch.bool)
        for iteration in range(self.iterations):
            draw = generator("dnc", updates.seed, updates.server_round, iteration)
            size = min(d, self.coordinates)
            chosen = torch.from_numpy(draw.choice(d, size, replace=False, shuffle=False))
            part = rows[:, chosen.to(rows.device)].double()
            good = torch.ones(n, dtype=torch.bool)
            good[_by_projection(part)[:dropped]] = False
            kept = kept & good if bool((kept & good).any()) else good
        found = updates.combined(kept.double() / kept.sum())
        return Aggregate(found.update, found.coefficients, {"f_used": float(f)})


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


def least_diameter_sets(distances: NDArray[np.float64], remove: int) -> list[tuple[int, ...]]:
    """The sets without so many rows of least diameter, and of these of least sum of distances.

    Several where they tie to rounding. All sets are looked at that could be such, unless more than
    1000 tie about the rest of what is to be removed; then the farthest row goes, one by one.

    Args:
        distances: (n, n), squared.
        remove: how many.
    """
    everybody = tuple(range(len(distances)))
    most = TIE * _least_diameter(distances, everybody, remove)
    within = set(_within(distances, everybody, remove, most))
    sums = {kept: float(distances[np.ix_(kept, kept)].sum()) for kept in within}
    least = TIE * min(sums.values())
    return sorted(kept for kept, total in sums.items() if total <= least)


def _least_diameter(
    distances: NDArray[np.float64], kept: tuple[int, ...], remove: int, known: float = np.inf
) -> float:
    """The least diameter that is left when so many rows are removed, or what is known if less."""
    inside = distances[np.ix_(kept, kept)]
    if not remove:
        return min(known, float(inside.max()))
    for end in divmod(int(inside.argmax()), len(kept)):
        known = _least_diameter(distances, _without(kept, end), remove - 1, known)
    return known


def _within(
    distances: NDArray[np.float64], kept: tuple[int, ...], remove: int, most: float
) -> Iterator[tuple[int, ...]]:
    """Every set without so many rows whose diameter is at most a number."""
    inside = distances[np.ix_(kept, kept)]
    if float(inside.max()) <= most:
        yield from _all_without(inside, kept, remove)
    elif remove:
        for end in divmod(int(inside.argmax()), len(kept)):
            yield from _within(distances, _without(kept, end), remove - 1, most)


def _all_without(
    inside: NDArray[np.float64], kept: tuple[int, ...], remove: int
) -> Iterator[tuple[int, ...]]:
    if math.comb(len(kept), remove) <= MAX_TRIED:
        yield from itertools.combinations(kept, len(kept) - remove)
        return
    for _ in range(remove):
        end = int(inside.sum(1).argmax())
        inside = np.delete(np.delete(inside, end, 0), end, 1)
        kept = _without(kept, end)
    yield kept


def _without(kept: tuple[int, ...], place: int) -> tuple[int, ...]:
    return kept[:place] + kept[place + 1 :]


def _least(updates: Updates, means: Tensor) -> int:
    """Of combinations of rows the one that is least in the first number in which they differ."""
    left, members = torch.arange(len(means)), means.any(0)
    for block in updates.blocks() if len(means) > 1 else ():
        values = means[left].to(block.device) @ block
        slack = (TIE - 1.0) * block[members.to(block.device)].abs().amax(0)
        values, slack = values.cpu(), slack.cpu()
        for column in (values > values.amin(0) + slack).any(0).nonzero().ravel().tolist():
            near = values[:, column] <= values[:, column].min() + slack[column]
            left, values = left[near], values[near]
            if len(left) == 1:
                return int(left[0])
    return int(left[0])
