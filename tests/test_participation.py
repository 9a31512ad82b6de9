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


def test_groups_hold_their_share_of_the_clients_with_their_probability():
    draw = Participation("groups", seed=2, groups=((0.25, 1.0), (0.5, 0.2), (0.25, 0.0)))
    clients = list(range(40))
    chances = draw.probabilities(clients)
    assert [(chances == p).sum() for p in (1.0, 0.2, 0.0)] == [10, 20, 10]
    assert draw.expected(clients) == pytest.approx(14.0)
    counts = np.zeros(40)
    for server_round in range(1, 1001):
        counts[draw.draw(clients, server_round)] += 1
    assert counts / 1000 == pytest.approx(chances, abs=0.06)
    other = Participation("groups", seed=3, groups=draw.groups)
    assert not np.array_equal(other.probabilities(clients), chances)


def test_a_clock_lets_each_client_take_part_at_its_own_pace():
    draw = Participation("clock", seed=4, spread=1.0)
    clients = list(range(50))
    rounds = [draw.draw(clients, r) for r in range(1, 401)]
    counts = np.bincount(np.concatenate(rounds), minlength=50)
    assert counts.max() <= 400
    assert counts.max() > 4 * counts.min() > 0
    times = [r for r, drawn in enumerate(rounds) if int(counts.argmin()) in drawn]
    gaps = np.diff(times)
    assert gaps.max() - gaps.min() <= 1
    assert Participation("clock", spread=0.0).draw(clients, 7) == clients
    assert draw.draw([3, 9], 5) == [c for c in draw.draw(clients, 5) if c in (3, 9)]


def test_a_trace_says_who_takes_part_and_begins_anew(tmp_path):
    draw = Participation("trace", trace={1: [4, 2], 3: [1]})
    drawn = [draw.draw(range(5), r) for r in range(1, 7)]
    assert drawn == [[2, 4], [], [1], [2, 4], [], [1]]
    assert draw.draw([2], 1) == [2]
