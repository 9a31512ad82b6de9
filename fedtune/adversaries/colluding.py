"""Attacks that look at what honest clients would send, so that all malicious ones agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.stats import norm
from torch import Tensor

from fedtune.adversaries.crafted import Knowledge
from fedtune.rules.base import centred_of, distances_of

HALVINGS = 40


Deviation = Literal["unit", "sign", "std"]


@dataclass(frozen=True)
class IPM:
    """Inner product manipulation (Xie et al., 2020): -ε times the honest mean.

    Attributes:
        epsilon: ε.
    """

    epsilon: float = 0.5

    def __call__(self, known: Knowledge, own: Tensor) -> Tensor:
        """The same from all."""
        return -self.epsilon * known.honest.mean(0)


@dataclass(frozen=True)
class ALIE:
    """A little is enough (Baruch et al., 2019): z standard deviations below the honest mean.

    Attributes:
        z: by default Φ⁻¹((n - f - s)/(n - f)) with s = ⌊n/2 + 1⌋ - f: as far as a majority hides.
    """

    z: float | None = None

    def __call__(self, known: Knowledge, own: Tensor) -> Tensor:
        """The same from all; of one known update there is no deviation."""
        n, f = known.clients, known.malicious
        z = self.z
        if z is None:
            supporters = n // 2 + 1 - f
            z = float(norm.ppf(min(max((n - f - supporters) / max(n - f, 1), 1e-3), 1 - 1e-3)))
        return known.honest.mean(0) - z * _std(known.honest)


@dataclass(frozen=True)
class MinMax:
    """As far along a deviation as the farthest honest pair (Shejwalkar and Houmansadr, 2021).

    Attributes:
        deviation: `unit` (the mean's direction), `sign` or `std`.
    """

    deviation: Deviation = "unit"

    def __call__(self, known: Knowledge, own: Tensor) -> Tensor:
        """The largest γ for which its greatest distance to honest updates is within theirs."""
        bound = float(distances_of(centred_of(known.honest)).max())
        return _farthest(known, self.deviation, lambda squared: float(squared.max()) <= bound)


@dataclass(frozen=True)
class MinSum:
    """As Min-Max, with sums of squared distances.

    Attributes:
        deviation: `unit`, `sign` or `std`.
    """

    deviation: Deviation = "unit"

    def __call__(self, known: Knowledge, own: Tensor) -> Tensor:
        """The largest γ for which its sum of squared distances is within the largest honest sum."""
        bound = float(distances_of(centred_of(known.honest)).sum(1).max())
        return _farthest(known, self.deviation, lambda squared: float(squared.sum()) <= bound)


@dataclass(frozen=True)
class Mimic:
    """All send what one honest client sends (Karimireddy et al., 2022).

    The one farthest along the direction in which honest updates differ most.
    """

    def __call__(self, known: Knowledge, own: Tensor) -> Tensor:
        """The same from all."""
        centred = centred_of(known.honest)
        vectors = torch.linalg.eigh(centred).eigenvectors[:, -1]
        return known.honest[int(vectors.abs().argmax())].clone()


@dataclass(frozen=True)
class Adaptive:
    """The γ along a deviation that moves the deployed rule farthest from the honest mean.

    A line search over a grid of γ, then around its best point; every try runs the rule itself.

    Attributes:
        deviation: `unit`, `sign` or `std`.
        most: the largest γ tried, in honest standard deviations.
        steps: tries.
    """

    deviation: Deviation = "std"
    most: float = 20.0
    steps: int = 16

    def __call__(self, known: Knowledge, own: Tensor) -> Tensor:
        """The same from all."""
        mean, direction = known.honest.mean(0), _direction(known.honest, self.deviation)
        grid = torch.linspace(self.most / self.steps, self.most, self.steps).tolist()
        best = max(grid, key=lambda gamma: self._damage(known, mean + gamma * direction))
        near = [best * factor for factor in (0.6, 0.8, 0.9, 1.0, 1.1, 1.25)]
        best = max(near, key=lambda gamma: self._damage(known, mean + gamma * direction))
        sent: Tensor = mean + best * direction
        return sent

    def _damage(self, known: Knowledge, sent: Tensor) -> float:
        rows = torch.cat([sent.expand(known.malicious, -1), known.honest])
        return float((known.aggregate(rows) - known.honest.mean(0)).norm())


def _std(rows: Tensor) -> Tensor:
    found: Tensor = rows.std(0, unbiased=True) if len(rows) > 1 else torch.zeros_like(rows[0])
    return found


def _direction(honest: Tensor, deviation: Deviation) -> Tensor:
    """-unit, -sign or -std of the honest updates, all as long as the standard deviation."""
    std = _std(honest)
    if deviation == "std":
        return -std
    mean = honest.mean(0)
    along = mean.sign() if deviation == "sign" else mean
    length = float(along.norm())
    return -along * (float(std.norm()) / length) if length else torch.zeros_like(mean)


def _farthest(known: Knowledge, deviation: Deviation, within: Callable[[Tensor], bool]) -> Tensor:
    """The largest γ, by doubling and halving, whose update keeps within a bound."""
    mean, direction = known.honest.mean(0), _direction(known.honest, deviation)

    def allowed(gamma: float) -> bool:
        apart = (known.honest - (mean + gamma * direction)).double()
        return within(apart.square().sum(1))

    low, high = 0.0, 1.0
    while allowed(high) and high < 2.0**HALVINGS and float(direction.norm()) > 0:
        low, high = high, 2.0 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return mean + low * direction
