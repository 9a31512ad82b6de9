"""Importance-weighted FedAvg: unbiased, never renormalised, with known or estimated chances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

import fedtune
from fedtune.errors import ScenarioError
from fedtune.grids.arrays import to_tensors
from fedtune.grids.cohort_grid import CohortGrid
from fedtune.participation import IntervalEstimate, Participation
from strategies import FedAvgUnbiased
from tests.runs.kit import adapter_bytes, lines, small

N, D = 6, 4
CHANCES = [0.9, 0.2, 0.5, 0.7, 0.3, 1.0]
DELTAS = np.random.default_rng(0).normal(size=(N, D))


class Constant:
    """Clients that always send the same update."""

    def handle(self, messages):
        replies = []
        for client, message in messages:
            sent = to_tensors(message.content["arrays"])["x"]
            arrays = ArrayRecord({"x": sent + torch.from_numpy(DELTAS[client])})
            metrics = MetricRecord({"num-examples": 1 + client})
            content = RecordDict({"arrays": arrays, "metrics": metrics})
            replies.append(Message(content, reply_to=message))
        return replies


def updates(strategy, rounds):
    """What each round moved the model by; 0 in a round of nobody."""
    grid, found = CohortGrid(Constant(), range(N)), []
    for number in range(1, rounds + 1):
        with grid.serving():
            messages = strategy.configure_train(
                number,
                ArrayRecord({"x": torch.zeros(D, dtype=torch.float64)}),
                ConfigRecord(),
                grid,
            )
            arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(list(messages)))
        found.append(np.zeros(D) if arrays is None else to_tensors(arrays)["x"].numpy())
    return np.stack(found)


def test_each_round_is_the_sum_over_probabilities():
    taking_part = Participation("bernoulli", CHANCES, 3)
    found = updates(FedAvgUnbiased(participation=taking_part), 20)
    for number, step in enumerate(found, 1):
        clients = taking_part.draw(range(N), number)
        expected = sum((DELTAS[k] / CHANCES[k] / N for k in clients), np.zeros(D))
        np.testing.assert_allclose(step, expected, atol=1e-12)


@pytest.mark.long
def test_its_mean_is_that_of_full_participation_within_four_standard_errors():
    found = updates(FedAvgUnbiased(participation=Participation("bernoulli", CHANCES, 1)), 3000)
    chance = np.asarray(CHANCES)[:, None]
    variance = ((1 - chance) / chance * (DELTAS / N) ** 2).sum(0)
    gap = np.abs(found.mean(0) - DELTAS.mean(0))
    assert (gap <= 4 * np.sqrt(variance / 3000) + 1e-12).all()
    np.testing.assert_allclose(found.var(0), variance, rtol=0.15)


def test_with_all_clients_it_is_the_mean():
    found = updates(FedAvgUnbiased(participation=Participation("fraction", 1.0)), 2)
    np.testing.assert_allclose(found, np.tile(DELTAS.mean(0), (2, 1)), atol=1e-12)


def test_the_inverse_is_capped():
    rare = Participation("bernoulli", [1e-9] * (N - 1) + [1.0], 0)
    found = updates(FedAvgUnbiased(participation=rare, most=10.0), 1)
    np.testing.assert_allclose(found[0], DELTAS[-1] / N, atol=1e-12)


def test_intervals_estimate_the_chance_from_earlier_rounds_only():
    estimate, random = IntervalEstimate(cutoff=200), np.random.default_rng(5)
    assert estimate.probabilities(range(N)).tolist() == [1.0] * N
    for _ in range(4000):
        estimate.saw(range(N), np.flatnonzero(random.random(N) < CHANCES))
    np.testing.assert_allclose(estimate.probabilities(range(N)), CHANCES, rtol=0.1)


def test_an_interval_by_hand_and_its_cutoff():
    estimate = IntervalEstimate(cutoff=4)
    for taking_part in ([], [0], [], [], [0]):  # intervals 2 and 3
        estimate.saw([0, 1], taking_part)
    # client 1: never there; one interval ended at 4 rounds
    np.testing.assert_allclose(estimate.probabilities([0, 1]), [2 / 5, 1 / 4])
    again = IntervalEstimate(cutoff=4)
    again.load_state_dict(estimate.state_dict())
    for one in (estimate, again):
        for _ in range(3):
            one.saw([0, 1], [])
    np.testing.assert_array_equal(estimate.probabilities([0, 1]), again.probabilities([0, 1]))


def test_a_server_that_does_not_know_the_chances_learns_them():
    hidden = Participation("bernoulli", CHANCES, 3, known=False)
    strategy = FedAvgUnbiased(participation=hidden, cutoff=1000)
    found = updates(strategy, 800)
    early, late = found[:5], found[400:]
    assert np.abs(late.mean(0) - DELTAS.mean(0)).max() < 0.1
    first = hidden.draw(range(N), 1)
    np.testing.assert_allclose(early[0], DELTAS[first].sum(0) / N, atol=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_a_run_with_groups_goes_on_bit_for_bit(tmp_path, known):
    groups = [{"share": 0.5, "probability": 1.0}, {"share": 0.5, "probability": 0.4}]
    part = {"kind": "groups", "groups": groups, "known": known}
    changes = small(strategy__name="fedavg-unbiased", run__rounds=4)
    changes = {k: v for k, v in changes.items() if k != "clients.participation.value"}
    changes["clients.participation"] = part
    whole = fedtune.run("quickstart", changes, tmp_path / "whole")
    fedtune.run("quickstart", {**changes, "run.rounds": 2}, tmp_path / "half")
    again = fedtune.resume(tmp_path / "half", {"run.rounds": 4})
    assert lines(again) == lines(whole)
    assert adapter_bytes(again) == adapter_bytes(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy.rule": "median"}, "allowed: auto, mean"),
        ({"strategy.pre": ["nnm"]}, r"strategy.pre: .* allowed: \[\]"),
        ({"clients.weights": "reported"}, "allowed: auto, uniform"),
        ({"clients.participation": {"kind": "clock"}}, "known = false"),
    ],
)
def test_what_it_does_not_go_with(tmp_path, change, message):
    with pytest.raises(ScenarioError, match=message):
        fedtune.run("quickstart", {"strategy.name": "fedavg-unbiased", **change}, tmp_path / "r")
    assert not (tmp_path / "r").exists()
