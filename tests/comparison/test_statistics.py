"""The statistics of comparisons: against scipy, by definition, and by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedtune.comparison.statistics import (
    detectable,
    holm,
    paired_difference,
    power,
    spread,
)

SIMULATIONS, MOST_FALSE = 1000, 68  # P(Binomial(1000, 0.05) > 68) < 0.5 %


def test_the_interval_is_that_of_the_t_distribution():
    values = [0.91, 0.95, 0.93, 0.90]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = spread(values)
    assert (found.n, found.mean) == (4, pytest.approx(np.mean(values)))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert spread([0.9]).sd is None


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=9))
def test_a_paired_difference_is_scipys_paired_test(pairs):
    mine, theirs = (np.asarray(column) for column in zip(*pairs, strict=True))
    found = paired_difference(mine, theirs)
    assert found.spread.mean == pytest.approx((mine - theirs).mean(), abs=1e-12)
    if found.p is None:
        assert np.ptp(mine - theirs) <= 1e-10
    else:
        assert found.p == pytest.approx(stats.ttest_rel(mine, theirs).pvalue, rel=1e-6)
    swapped = paired_difference(theirs, mine)
    assert swapped.spread.mean == pytest.approx(-found.spread.mean, abs=1e-12)


def test_no_rank_test_where_it_could_not_reach_the_level():
    random = np.random.default_rng(0)
    for n in range(2, 12):
        found = paired_difference(random.normal(9, 1, n), random.normal(0, 1, n))
        assert (found.rank_p is None) == (n < 6)
    assert 2 * 0.5**5 > 0.05 > 2 * 0.5**6


def closed_testing(p_values: list[float]) -> list[float]:
    """Holm's procedure by the closure principle: the largest Bonferroni p of any set around it."""
    indices = range(len(p_values))
    sets = [s for k in indices for s in itertools.combinations(indices, k + 1)]
    bonferroni = {s: min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets}
    return [max(p for s, p in bonferroni.items() if i in s) for i in indices]


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_values):
    assert holm(p_values) == pytest.approx(closed_testing(p_values))
    assert holm([None, *p_values]) == pytest.approx([None, *closed_testing(p_values)])


@pytest.mark.parametrize("n", [3, 5, 10])
def test_false_positives_of_one_comparison_with_noise_in_both_arms(n):
    random = np.random.default_rng(n)
    arms = random.normal(size=(SIMULATIONS, 2, n))
    false = sum(paired_difference(one, other).p < 0.05 for one, other in arms)
    assert 32 <= false <= MOST_FALSE


def test_false_positives_of_a_family_after_holm():
    random = np.random.default_rng(7)
    false = 0
    for _ in range(SIMULATIONS):
        reference, *others = random.normal(size=(5, 5))
        corrected = holm([paired_difference(other, reference).p for other in others])
        false += min(corrected) < 0.05
    assert false <= MOST_FALSE


def test_without_holm_a_family_would_fail_that_test():
    random = np.random.default_rng(7)
    false = 0
    for _ in range(SIMULATIONS):
        reference, *others = random.normal(size=(5, 5))
        false += min(paired_difference(other, reference).p for other in others) < 0.05
    assert false > MOST_FALSE


@pytest.mark.parametrize(("n", "effect"), [(5, 1.5), (10, 1.0)])
def test_power_for_a_planted_difference_is_what_theory_says(n, effect):
    """Theory: the noncentral t of scipy, at points where it has a value."""
    critical = stats.t.ppf(0.975, n - 1)
    shift = effect * np.sqrt(n)
    theory = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    assert power(effect, n, 0.05) == pytest.approx(theory, abs=1e-5)
    random = np.random.default_rng(n)
    arms = random.normal(size=(SIMULATIONS, 2, n)) / np.sqrt(2)
    arms[:, 0] += effect
    found = sum(paired_difference(one, other).p < 0.05 for one, other in arms)
    low, high = stats.binom.interval(0.99, SIMULATIONS, theory)
    assert low <= found <= high


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("tests", [1, 5, 14])
def test_the_smallest_detectable_difference_is_detected_with_the_promised_chance(n, tests):
    effect = detectable(1.0, n, tests)
    critical = stats.t.ppf(1 - 0.025 / tests, n - 1)
    random = np.random.default_rng(n * tests)
    samples = random.normal(effect, 1.0, size=(20_000, n))
    t = samples.mean(1) / (samples.std(1, ddof=1) / np.sqrt(n))
    assert np.mean(np.abs(t) > critical) == pytest.approx(0.8, abs=0.01)
    assert detectable(0.3, n, tests) == pytest.approx(0.3 * effect)
