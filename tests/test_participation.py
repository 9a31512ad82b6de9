"""Sampling: a function of (seed, round), right in number and in probability."""

from __future__ import annotations

import numpy as np
import pytest

from fedtune.participation import Participation


def test_a_fraction_is_drawn_without_replacement_and_again_the_same():
    draw = Participation("fraction", 0.3, seed=5)
    clients = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]
    rounds = [draw.draw(clients, r) for r in range(1, 60)]
    assert all(len(set(r)) == 3 and r == sorted(r) and set(r) <= set(clients) for r in rounds)
    assert rounds == [Participation("fraction", 0.3, seed=5).draw(clients, r) for r in range(1, 60)]
    assert len({tuple(r) for r in rounds}) > 30
    assert {c for r in rounds for c in r} == set(clients)


def test_a_tiny_fraction_still_draws_one():
    assert len(Participation("fraction", 0.001).draw(range(10), 1)) == 1


def test_bernoulli_follows_each_clients_own_probability():
    chances = [0.0, 0.2, 0.9, 1.0]
    draw = Participation("bernoulli", chances, seed=1)
    counts = np.zeros(4)
    for server_round in range(1, 2001):
        counts[draw.draw(range(4), server_round)] += 1
    assert counts / 2000 == pytest.approx(chances, abs=0.04)


def test_bernoulli_goes_by_client_id_and_may_draw_nobody():
    assert Participation("bernoulli", [1.0, 0.0, 1.0]).draw([1, 2], 1) == [2]
    assert Participation("bernoulli", 0.0).draw([1, 2], 1) == []
