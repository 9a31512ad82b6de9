"""Pre-aggregation: each row becomes a combination of rows, before any rule sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedtune.randomness import generator
from fedtune.rules.base import Updates


@dataclass(frozen=True)
class NNM:
    """Nearest-neighbour mixing (Allouah et al., 2023): a row becomes the mean of its n - f nearest.

    It makes a robust rule better and is none itself: an attacker's row stays a row, of which the
    attacker's own update is a 1 / (n - f)-th. `mean` after it has no bound.

    Attributes:
        f: Byzantine clients; lowered to (n - 1) / 2 where replies are too few.
    """

    f: int = 0

    def __call__(self, updates: Updates) -> Updates:
        """A row is its own nearest; f = 0 makes all rows the mean."""
        n = len(updates)
        f = min(self.f, (n - 1) // 2)
        distances = updates.distances.fill_diagonal_(-1.0)
        nearest = torch.argsort(distances, dim=1, stable=True)[:, : n - f]
        mixing = torch.zeros(n, n, dtype=torch.float64).scatter_(1, nearest, 1.0 / (n - f))
        centred = mixing @ updates.centred @ mixing.T
        return updates.mixed(mixing, centred, {"nnm_f_used": float(f)})


@dataclass(frozen=True)
class Bucketing:
    """Means of buckets of s rows (Karimireddy et al., 2022), dealt by (seed, round).

    Attributes:
        s: rows a bucket.
    """

    s: int = 2

    def __call__(self, updates: Updates) -> Updates:
        """The last bucket may be smaller."""
        n = len(updates)
        draw = generator("bucketing", updates.seed, updates.server_round)
        order = torch.from_numpy(draw.permutation(n))
        buckets = order.split(self.s)
        mixing = torch.zeros(len(buckets), n, dtype=torch.float64)
        for place, bucket in enumerate(buckets):
            mixing[place, bucket] = 1.0 / len(bucket)
        return updates.mixed(mixing)


@dataclass(frozen=True)
class Clip:
    """Rows longer than a constant are cut to it.

    Attributes:
        norm: the constant.
    """

    norm: float = 1.0

    def __call__(self, updates: Updates) -> Updates:
        """Directions stay."""
        return _clipped(updates, self.norm)


@dataclass(frozen=True)
class ARC:
    """Adaptive robust clipping (Allouah et al., 2025).

    The k = ⌊2f(n - f)/n⌋ longest rows are cut to the length of the next.

    Attributes:
        f: Byzantine clients; lowered to (n - 1) / 2 where replies are too few.
    """

    f: int = 0

    def __call__(self, updates: Updates) -> Updates:
        """f = 0 cuts nothing."""
        n = len(updates)
        f = min(self.f, (n - 1) // 2)
        longest = updates.norms.sort(descending=True).values
        cut = 2 * f * (n - f) // n
        return _clipped(updates, float(longest[cut]), {"arc_f_used": float(f)})


def _clipped(updates: Updates, norm: float, notes: Mapping[str, float] | None = None) -> Updates:
    lengths = updates.norms
    scale = torch.where(lengths > norm, norm / lengths, 1.0)
    return updates.mixed(scale, notes=notes)
