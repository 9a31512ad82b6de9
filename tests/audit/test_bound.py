"""The bound on ε: right about its confidence, and as large as the guesses allow."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedtune.audit.bound import bound, chance, lower_bound


def test_scores_that_say_nothing_show_nothing_as_often_as_promised():
    random, found = np.random.default_rng(0), 0
    for _ in range(400):
        included = random.random(200) < 0.5
        found += bound(random.normal(size=200), included, 0.0).epsilon > 0
    assert found <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_is_not_overestimated_and_nearly_found(epsilon):
    random, over, found = np.random.default_rng(1), 0, []
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    for _ in range(200):
        included = random.random(400) < 0.5
        told = np.where(random.random(400) < right, included, ~included)
        scores = told + 0.01 * random.random(400)
        found.append(bound(scores, included, 0.0).epsilon)
        over += found[-1] > epsilon
    assert over <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95)
    assert np.median(found) > 0


def test_all_right_is_what_the_binomial_says():
    level = 0.0125
    p = level ** (1 / 100)
    assert lower_bound(200, 100, 100, 0.0, level) == pytest.approx(math.log(p / (1 - p)), abs=2e-3)
    assert lower_bound(200, 100, 50, 0.0, level) == 0.0


def test_delta_costs_and_is_summed_as_the_theorem_says():
    exact = chance(20, 10, 8, 1.0, 0.0)
    p = math.e / (1 + math.e)
    pmf = [math.comb(10, k) * p**k * (1 - p) ** (10 - k) for k in range(11)]
    assert exact == pytest.approx(sum(pmf[8:]))
    worst = max(sum(pmf[8 - i : 8]) / i for i in range(1, 9))
    assert chance(20, 10, 8, 1.0, 1e-3) == pytest.approx(exact + 2 * 20 * 1e-3 * worst)
    assert lower_bound(200, 100, 95, 1e-2, 0.05) < lower_bound(200, 100, 95, 0.0, 0.05)
    assert chance(20, 10, 0, 1.0, 0.0) == 1.0
