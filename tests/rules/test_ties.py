"""Where values, diameters and sums tie: what is kept is nearest or least, whoever comes first."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.rules.coordinates import MeaMed, Phocas
from fedtune.rules.subsets import MDA
from tests.rules.kit import updates

WHOLE = st.lists(st.integers(-3, 3), min_size=3, max_size=9)


@given(WHOLE, st.integers(0, 3))
@settings(max_examples=200)
def test_meamed_and_phocas_average_values_none_of_which_is_farther_than_one_left_out(values, f):
    n, column = len(values), np.asarray(values, dtype=np.float64)[:, None]
    low, high = sorted(values)[(n - 1) // 2], sorted(values)[n // 2]
    own = min(f, n - 1)
    means = nearest_means(values, Fraction(low + high, 2), n - own)
    assert MeaMed(f)(updates(column)).update.item() == pytest.approx(float(min(means)))
    own = min(f, (n - 1) // 2)
    kept = sorted(values)[own : n - own]
    means = nearest_means(values, Fraction(sum(kept), len(kept)), n - own)
    found = Phocas(f)(updates(column)).update.item()  # thirds: rounding may decide a tie
    assert min(abs(found - float(mean)) for mean in means) < 1e-9


def nearest_means(values, middle, count) -> list[Fraction]:
    """Of every set of so many values whose farthest is as near as the nearest outside of it."""
    found = []
    for kept in itertools.combinations(range(len(values)), count):
        apart = [abs(value - middle) for value in values]
        outside = [apart[i] for i in range(len(values)) if i not in kept]
        if max(apart[i] for i in kept) <= min(outside, default=max(apart)):
            found.append(Fraction(sum(values[i] for i in kept), count))
    return found


def test_meamed_and_phocas_where_the_nearest_tie():
    column = np.asarray([[-1.0], [-1.0], [0.0], [0.5], [1.0]])
    assert MeaMed(2)(updates(column)).update.item() == pytest.approx(-0.5 / 3)
    order = torch.randperm(5)
    assert MeaMed(2)(updates(column[order])).update.item() == pytest.approx(-0.5 / 3)


@given(st.lists(st.tuples(*[st.integers(-2, 2)] * 2), min_size=3, max_size=8), st.integers(0, 3))
@settings(max_examples=150)
def test_mda_keeps_the_least_sum_of_the_least_diameters_whoever_comes_first(points, f):
    rows = np.asarray(points, dtype=np.float64)
    n, f = len(rows), min(f, (len(rows) - 1) // 2)
    apart = ((rows[:, None] - rows[None]) ** 2).sum(-1)

    def measure(kept):
        inside = apart[np.ix_(kept, kept)]
        return inside.max(), inside.sum()

    best = min(measure(kept) for kept in itertools.combinations(range(n), n - f))
    found = MDA(f)(updates(rows))
    kept = found.coefficients.nonzero().ravel().tolist()
    assert len(kept) == n - f
    assert measure(kept) == best
    for order in (np.arange(n)[::-1], np.random.default_rng(n).permutation(n)):
        np.testing.assert_allclose(MDA(f)(updates(rows[order])).update, found.update, atol=1e-9)


def test_mda_where_one_diameter_has_two_sums():
    kept = MDA(2)(updates(np.asarray([[-2.0], [2.0], [-2.0], [1.0], [0.0]]))).coefficients
    assert kept.nonzero().ravel().tolist() == [1, 3, 4]  # a sum of 12, not the 16 of -2, -2, 0


def test_mda_ends_where_more_sets_tie_than_can_be_looked_at():
    rows = np.eye(30)
    found = MDA(14)(updates(rows))
    assert len(found.coefficients.nonzero()) == 16
