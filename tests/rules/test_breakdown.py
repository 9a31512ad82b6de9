"""One huge update, or f of them: rules do what their definitions do in 60 digits.

For every rule of the registry, alone and behind every pre-aggregator. The measure is the distance
of the aggregate from the honest mean, in honest spreads (root mean squares of distances from it).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fedtune.rules import PRE, RULES, Updates, make_pre, make_rule
from tests.kits import rules_reference as reference

D = 12
LONGEST = 3e38
RADII = (0.1, 1.0, 1e2, 1e4, 1e7, 1e8, 1e10, 1e12, 1e16, 1e20, 1e30, LONGEST)
SHAPES = ("one", "together", "opposite", "decoy", "nearly together")
SPREADS, DTYPES = (1.0, 1e-3, 1e-6), (torch.float32, torch.float64)
BEFORE = [(), *((name,) for name in PRE)]
SLOW = ("flag", "mda")


@dataclass(frozen=True)
class Attacked:
    """A round in which the first clients are malicious.

    Attributes:
        radius: how long the updates of malicious clients are.
        shape: `one` of them; f `together`, at one point; f `opposite`, in two directions by turns;
            f `nearly together`, as far from each other as honest ones; or a `decoy` at the radius,
            and the others at 1.
        spread: standard deviation of honest numbers, about a mean that is `offset` as long.
    """

    n: int
    f: int
    radius: float
    shape: str
    spread: float
    offset: float
    dtype: torch.dtype
    seed: int

    @property
    def malicious(self) -> int:
        return min(1, self.f) if self.shape == "one" else self.f

    def rows(self) -> torch.Tensor:
        draw = np.random.default_rng(self.seed)
        rows = self.spread * (self.offset * draw.normal(size=D) + draw.normal(size=(self.n, D)))
        along, other = (v / np.linalg.norm(v) for v in draw.normal(size=(2, D)))
        for i in range(self.malicious):
            sent = self.radius * along
            if self.shape == "opposite":
                sent = sent * (-1) ** i
            elif self.shape == "decoy" and i:
                sent = other
            elif self.shape == "nearly together":
                sent = sent + self.spread * draw.normal(size=D)
            rows[i] = sent
        return torch.from_numpy(rows).to(self.dtype)


def both(rule: str, pre: tuple[str, ...], case: Attacked) -> tuple[float, float]:
    """How far from the honest mean the package's aggregate is, and the definition's."""
    order = np.random.default_rng(case.seed).permutation(case.n)
    rows = case.rows()[torch.from_numpy(order)]
    trusted = rows[torch.from_numpy(order >= case.malicious)].double().mean(0).to(case.dtype)
    weights = torch.full((case.n,), 1.0 / case.n, dtype=torch.float64)
    updates = Updates(rows, weights, range(case.n), trusted=trusted)
    for name in pre:
        updates = make_pre(name, case.f)(updates)
    found = make_rule(rule, case.f)(updates).update.double().tolist()
    exact, (root,) = reference.exact(rows.tolist()), reference.exact([trusted.tolist()])
    given = reference.Round(exact, case.f, trusted=root)
    expected = reference.aggregate(rule, pre, given)
    honest = [row for row, place in zip(exact, order, strict=True) if place >= case.malicious]
    assert np.isfinite(found).all(), case
    return from_honest(reference.exact([found])[0], honest), from_honest(expected, honest)


def from_honest(aggregate, honest) -> float:
    mp, mean = reference.mp, reference.mean_of(honest)
    apart = [reference.norm(reference.minus(row, mean)) ** 2 for row in honest]
    return float(
        reference.norm(reference.minus(aggregate, mean)) / mp.sqrt(mp.fsum(apart) / len(honest))
    )


def cases(rule: str, pre: tuple[str, ...], count: int, most: int) -> list[Attacked]:
    """Drawn by the names; every radius and shape comes about equally often."""
    draw = np.random.default_rng(zlib.crc32(repr((rule, pre, count)).encode()))
    found = []
    while len(found) < count:
        n = int(draw.integers(5, most + 1))
        bound = reference.most_malicious(rule, n, pre)
        if bound == 0:
            continue
        found.append(
            Attacked(
                n=n,
                f=int(draw.integers(1, bound + 1)),
                radius=RADII[-1 - len(found) % len(RADII)],
                shape=SHAPES[len(found) % len(SHAPES)],
                spread=SPREADS[draw.integers(len(SPREADS))],
                offset=float(draw.integers(4)),
                dtype=DTYPES[draw.integers(len(DTYPES))],
                seed=int(draw.integers(2**31)),
            )
        )
    return found


def check(rule: str, pre: tuple[str, ...], count: int, most: int) -> None:
    for case in cases(rule, pre, count, most):
        found, expected = both(rule, pre, case)
        assert found <= 2.0 * expected + 1e-4, (rule, pre, case, found, expected)


@pytest.mark.parametrize("pre", BEFORE, ids=lambda names: "+".join(names) or "alone")
@pytest.mark.parametrize("rule", sorted(set(RULES) - set(reference.NO_BREAKDOWN)))
def test_huge_updates_do_no_more_than_in_exact_arithmetic(rule, pre):
    check(rule, pre, count=5 if rule == "flag" else 12, most=12 if rule in SLOW else 15)


@pytest.mark.long
@pytest.mark.parametrize("pre", BEFORE, ids=lambda names: "+".join(names) or "alone")
@pytest.mark.parametrize("rule", sorted(set(RULES) - set(reference.NO_BREAKDOWN)))
def test_huge_updates_do_no_more_than_in_exact_arithmetic_widely(rule, pre):
    check(rule, pre, count=60 if rule in SLOW else 300, most=16 if rule == "mda" else 20)
