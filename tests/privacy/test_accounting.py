"""ε: the card's figures, Opacus's own accountants, and what must hold of any."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier

from fedtune.errors import ScenarioError
from fedtune.privacy.accounting import (
    ORDERS,
    Spent,
    _fixed_curve,
    epsilon,
    noise_multiplier,
)

ORACLES = [  # z, q, steps, δ, RDP, PRV (shared/methods/aggregation-and-privacy.md, section 7a)
    (1.0, 0.01, 1000, 1e-5, 2.101, 1.838),
    (1.1, 256 / 60000, 14062, 1e-5, 2.597, 2.392),
    (1.0, 1.0, 1, 1e-5, 4.729, 4.387),
    (1.0, 0.1, 200, 1e-3, 8.184, 7.107),
    (1.0, 0.005, 1500, 1e-6, 1.599, 1.239),
]


@pytest.mark.parametrize(("z", "q", "steps", "delta", "rdp", "prv"), ORACLES)
def test_the_known_figures(z, q, steps, delta, rdp, prv):
    history = [Spent(z, q, steps)]
    assert epsilon(history, delta, "rdp") == pytest.approx(rdp, abs=1e-3)
    assert epsilon(history, delta, "prv") == pytest.approx(prv, abs=1e-3)


def test_a_history_of_many_kinds_is_that_of_opacus_own_accountant():
    history = [(1.0, 0.1, 20), (1.3, 0.1, 30), (2.0, 1.0, 1)]
    accountant = RDPAccountant()
    accountant.history = history
    assert epsilon([Spent(*one) for one in history], 1e-4) == pytest.approx(
        accountant.get_epsilon(1e-4), rel=1e-12
    )


@given(
    st.lists(st.tuples(st.sampled_from([0.8, 1.5]), st.sampled_from([0.05, 0.2, 1.0]),
                       st.integers(1, 30)), min_size=1, max_size=5),
)  # fmt: skip
def test_order_and_grouping_of_steps_change_nothing_and_more_steps_cost_more(steps):
    history = [Spent(*one) for one in steps]
    whole = epsilon(history, 1e-5)
    singles = [Spent(z, q, 1) for z, q, n in reversed(steps) for _ in range(n)]
    assert epsilon(singles, 1e-5) == pytest.approx(whole, rel=1e-12)
    assert epsilon([*history, Spent(1.5, 0.2, 1)], 1e-5) > whole


def test_no_steps_cost_nothing_and_no_noise_costs_everything():
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([Spent(1.0, 0.1, 0)], 1e-5) == 0.0
    assert epsilon([Spent(1.0, 0.1, 5), Spent(0.0, 0.1, 1)], 1e-5) == math.inf


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize(("target", "rate", "steps"), [(6.0, 1 / 7, 500), (1.0, 0.25, 40)])
def test_noise_for_an_epsilon_is_within_it_and_hardly_more_than_needed(
    accountant, target, rate, steps
):
    z = noise_multiplier(target, 1e-5, rate, steps, accountant)
    assert epsilon([Spent(z, rate, steps)], 1e-5, accountant) <= target
    assert epsilon([Spent(z * 0.995, rate, steps)], 1e-5, accountant) > target
    theirs = get_noise_multiplier(
        target_epsilon=target, target_delta=1e-5, sample_rate=rate, steps=steps,
        accountant=accountant, epsilon_tolerance=1e-3,
    )  # fmt: skip
    assert z == pytest.approx(theirs, rel=5e-3)


def test_what_was_spent_before_leaves_less():
    before = (Spent(5.0, 1.0, 1),)
    z = noise_multiplier(2.0, 1e-5, 0.1, 100, before=before)
    assert z > noise_multiplier(2.0, 1e-5, 0.1, 100)
    assert epsilon([*before, Spent(z, 0.1, 100)], 1e-5) <= 2.0
    with pytest.raises(ScenarioError, match=r"privacy.epsilon = 0.5: no noise reaches it"):
        noise_multiplier(0.5, 1e-5, 0.1, 100, before=before)


def test_the_orders_are_those_of_opacus():
    assert list(ORDERS["poisson"]) == list(RDPAccountant.DEFAULT_ALPHAS)


def brute_force_fixed(rate, z, order):
    """Wang, Balle and Kasiviswanathan's Theorem 9 in plain arithmetic."""
    e = {j: 2.0 * j / z**2 for j in range(2, order + 1)}
    total = 1.0 + rate**2 * math.comb(order, 2) * min(4 * (math.exp(e[2]) - 1), 2 * math.exp(e[2]))
    for j in range(3, order + 1):
        total += rate**j * math.comb(order, j) * 2 * math.exp((j - 1) * e[j])
    return min(math.log(total) / (order - 1), e[order])


def test_rounds_of_a_fixed_number_of_clients_by_theorem_9():
    for rate, z in [(0.01, 3.0), (0.1, 6.0), (0.5, 10.0)]:
        curve = _fixed_curve(rate, z)
        for order in (2, 3, 5, 12):
            found = curve[ORDERS["fixed"].index(order)]
            assert found == pytest.approx(brute_force_fixed(rate, z, order), rel=1e-9)
    everyone = [Spent(4.0, 1.0, 10, "fixed")]  # the Gaussian mechanism of sensitivity 2C
    orders = np.arange(2, 257)
    rdp = 10 * 2 * orders / 4.0**2
    best = (
        rdp - (np.log(1e-5) + np.log(orders)) / (orders - 1) + np.log((orders - 1) / orders)
    ).min()
    assert epsilon(everyone, 1e-5) == pytest.approx(best, rel=1e-9)
    few = epsilon([Spent(8.0, 0.05, 100, "fixed")], 1e-5)
    assert (
        epsilon([Spent(8.0, 0.05, 100)], 1e-5)
        < few
        < epsilon([Spent(8.0, 1.0, 100, "fixed")], 1e-5)
    )
    with pytest.raises(ScenarioError, match=r"privacy.accountant = 'prv'"):
        epsilon([Spent(4.0, 0.1, 10, "fixed")], 1e-5, "prv")
