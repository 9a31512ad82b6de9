"""Rules that look at one coordinate at a time: median, trimmed mean, MeaMed, Phocas."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedtune.rules.base import Aggregate, Updates, by_columns


@dataclass(frozen=True)
class Median:
    """The median of each coordinate (Yin et al., 2018); of two middle values their mean."""

    def __call__(self, updates: Updates) -> Aggregate:
        """Not linear: there are no coefficients."""
        return Aggregate(by_columns(updates.rows, median))


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate without its f least and f greatest values (Yin et al., 2018).

    Attributes:
        f: Byzantine clients; lowered to (n - 1) / 2 where replies are too few.
    """

    f: int = 0

    def __call__(self, updates: Updates) -> Aggregate:
        """f = 0 is the mean."""
        f = min(self.f, (len(updates) - 1) // 2)
        update = by_columns(updates.rows, lambda block: trimmed_mean(block, f))
        return Aggregate(update, notes={"f_used": float(f)})


@dataclass(frozen=True)
class MeaMed:
    """By coordinate the mean of the n - f values nearest to the median (Xie et al., 2018).

    Attributes:
        f: Byzantine clients.
    """

    f: int = 0

    def __call__(self, updates: Updates) -> Aggregate:
        """f = 0 is the mean."""
        rows = updates.rows
        f = min(self.f, len(rows) - 1)
        count = len(rows) - f
        update = by_columns(rows, lambda block: nearest_mean(block, median(block), count))
        return Aggregate(update, notes={"f_used": float(f)})


@dataclass(frozen=True)
class Phocas:
    """By coordinate the mean of the n - f values nearest to the trimmed mean (Xie et al., 2018).

    Attributes:
        f: Byzantine clients.
    """

    f: int = 0

    def __call__(self, updates: Updates) -> Aggregate:
        """f = 0 is the mean."""
        rows = updates.rows
        f = min(self.f, (len(rows) - 1) // 2)
        count = len(rows) - f
        update = by_columns(rows, lambda block: nearest_mean(block, trimmed_mean(block, f), count))
        return Aggregate(update, notes={"f_used": float(f)})


def median(rows: Tensor) -> Tensor:
    """The median of each column, (n, d) to (d,)."""
    n = len(rows)
    ordered = rows.sort(0).values
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def trimmed_mean(rows: Tensor, f: int) -> Tensor:
    """The mean of each column without its f least and f greatest values, (n, d) to (d,)."""
    return rows.sort(0).values[f : len(rows) - f].mean(0)


def nearest_mean(rows: Tensor, middle: Tensor, count: int) -> Tensor:
    """The mean of each column's `count` values nearest to its middle, (n, d) and (d,) to (d,).

    Of equally near ones the earlier row.
    """
    if count == len(rows):
        return rows.mean(0)
    order = torch.argsort((rows - middle).abs(), dim=0, stable=True)[:count]
    return rows.gather(0, order).mean(0)
