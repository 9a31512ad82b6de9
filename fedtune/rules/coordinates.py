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
        return Aggregate(by_columns(updates.rows, lambda block: median_of(ordered(block))))


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
        update = by_columns(updates.rows, lambda block: trimmed_mean_of(ordered(block), f))
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
        update = by_columns(rows, lambda block: meamed(block, count))
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
        update = by_columns(rows, lambda block: phocas(block, f))
        return Aggregate(update, notes={"f_used": float(f)})


def ordered(rows: Tensor) -> Tensor:
    """Each column by rising value."""
    return rows.sort(0).values


def median_of(columns: Tensor) -> Tensor:
    """The median of each ordered column, (n, d) to (d,)."""
    n = len(columns)
    return (columns[(n - 1) // 2] + columns[n // 2]) / 2


def trimmed_mean_of(columns: Tensor, f: int) -> Tensor:
    """The mean of each ordered column without its f least and f greatest values."""
    return columns[f : len(columns) - f].mean(0)


def nearest_mean_of(columns: Tensor, middle: Tensor, count: int) -> Tensor:
    """The mean of each ordered column's `count` values nearest to its middle.

    In order, these are neighbours. Of two values as near as each other the lesser counts.

    Args:
        columns: (n, d), each in rising order.
        middle: (d,).
        count: at most n.
    """
    last = len(columns) - count
    nearer = columns[count:] - middle < middle - columns[:last]  # than the run's first: it moves on
    places = torch.arange(count, device=columns.device)[:, None]
    return columns.gather(0, nearer.sum(0) + places).mean(0)


def meamed(rows: Tensor, count: int) -> Tensor:
    """The mean of each column's `count` values nearest to its median, (n, d) to (d,)."""
    columns = ordered(rows)
    return nearest_mean_of(columns, median_of(columns), count)


def phocas(rows: Tensor, f: int) -> Tensor:
    """The mean of each column's n - f values nearest to its trimmed mean, (n, d) to (d,)."""
    columns = ordered(rows)
    return nearest_mean_of(columns, trimmed_mean_of(columns, f), len(rows) - f)
