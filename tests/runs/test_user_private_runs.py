"""User-level privacy in whole runs."""

from __future__ import annotations

import math
import threading

import pytest
import torch

import fedtune
from fedtune.errors import RunError, ScenarioError
from fedtune.privacy.accounting import Spent, epsilon
from fedtune.runs.build import build
from fedtune.runs.loop import one_round, start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario
from tests.runs.kit import adapter_bytes, lines, small

USER = {"privacy": {"mechanism": "user", "noise_multiplier": 2.0, "clip": 0.5, "delta": 1e-3,
                    "deterministic_randomness": True}}  # fmt: skip
POISSON = {"clients__participation": {"kind": "bernoulli", "value": 0.5}}


def changes_of(**changes):
    made = small(**{**POISSON, **changes})
    made.pop("clients.participation.value", None)
    return made


def test_nothing_that_is_written_tells_who_took_part_or_what_they_lost(tmp_path):
    run = fedtune.run("quickstart", changes_of(**USER, run__rounds=4), tmp_path / "run")
    for line in run.metrics:
        assert "client_ids" not in line
        assert "coefficients" not in line
        assert "client_steps" not in line
        assert line["train"] == {}
        assert set(line["rule"]) == {"clip"}
    history = [Spent(2.0, 0.5, 4)]
    assert run.metrics[-1]["epsilon"] == pytest.approx(epsilon(history, 1e-3), rel=1e-12)
    found = run.summary["privacy"]
    assert found["sampling"] == "poisson"
    assert list(found["clients"]) == ["-1"]


def test_an_empty_round_has_noise_and_is_charged():
    federation = build(settle_paths(load_scenario("quickstart", changes_of(
        **USER, clients__participation={"kind": "bernoulli", "value": 1e-9}))))  # fmt: skip
    with federation.serving.serving():
        state = start_state(federation, None)
        before = {name: tensor.clone() for name, tensor in state.arrays.items()}
        line = one_round(federation, state, 1)
    assert line["clients"] == 0
    assert not [n for n, tensor in state.arrays.items() if torch.equal(tensor, before[n])]
    assert len(federation.budget.ledger.entries(-1, federation.budget.data)) == 1


def test_a_client_moves_the_model_by_the_clip_over_the_expected_number_at_most():
    moves = []
    for lr in (1e-3, 1e3):
        everyone = {"kind": "bernoulli", "value": 1.0}
        changes = changes_of(local__lr=lr, local__optimizer="sgd", clients__participation=everyone)
        changes["privacy"] = {**USER["privacy"], "noise_multiplier": 0.0}
        federation = build(settle_paths(load_scenario("quickstart", changes)))
        with federation.serving.serving():
            state = start_state(federation, None)
            flat = federation.adapted.layout.flatten
            before = flat(state.arrays).clone()
            one_round(federation, state, 1)
            moves.append(float((flat(state.arrays) - before).norm()))
    assert moves[0] < moves[1] <= 0.5 * (1 + 1e-5)


def test_secret_sampling_differs_from_run_to_run_and_the_seed_does_not_tell_it():
    who = []
    for _ in range(2):
        changes = changes_of(clients__count=40, **POISSON)
        changes["privacy"] = {**USER["privacy"], "deterministic_randomness": False}
        federation = build(settle_paths(load_scenario("quickstart", changes)))
        who.append(federation.strategy.participation.draw(range(40), 1))
    assert who[0] != who[1]


def test_a_run_ends_before_a_round_that_its_budget_does_not_pay(tmp_path):
    privacy = {"mechanism": "user", "epsilon": 2.0, "delta": 1e-3, "clip": 0.5}
    run = fedtune.run("quickstart", changes_of(privacy=privacy, run__rounds=3), tmp_path / "run")
    assert 1.99 < run.metrics[-1]["epsilon"] <= 2.0
    with pytest.raises(RunError, match=r"round 4: the privacy budget is spent"):
        fedtune.resume(tmp_path / "run", {"run.rounds": 5})
    assert len(run.metrics) == 3


def test_a_resumed_run_goes_on_with_the_adaptive_bound(tmp_path):
    privacy = {**USER["privacy"], "adaptive": {"count_noise": 3.0}}
    changes = changes_of(privacy=privacy, run__rounds=3)
    whole = fedtune.run("quickstart", changes, tmp_path / "whole")
    fedtune.run("quickstart", {**changes, "run.rounds": 2}, tmp_path / "part")
    again = fedtune.resume(tmp_path / "part", {"run.rounds": 3})
    assert lines(again) == lines(whole)
    assert adapter_bytes(again) == adapter_bytes(whole)
    bounds = [line["rule"]["clip"] for line in whole.metrics]
    assert bounds[0] == 0.5
    assert len(set(bounds)) == 3


def test_plan_says_what_a_fixed_number_of_clients_costs():
    privacy = {"mechanism": "user", "noise_multiplier": 8.0, "delta": 1e-3}
    fixed = fedtune.plan("quickstart", small(privacy=privacy)).privacy
    assert fixed["epsilon"][0] == pytest.approx(epsilon([Spent(8.0, 0.5, 2, "fixed")], 1e-3))
    poisson = fedtune.plan("quickstart", changes_of(privacy=privacy)).privacy
    assert poisson["epsilon"][0] == pytest.approx(epsilon([Spent(8.0, 0.5, 2)], 1e-3))
    assert math.isfinite(fixed["epsilon"][0])


@pytest.mark.parametrize("strategy", ["ffa-lora", "fed-sb", "fedsvd", "rolora", "fedprox"])
def test_methods_that_sum_updates_run(tmp_path, strategy):
    run = fedtune.run("quickstart", changes_of(**USER, strategy__name=strategy), tmp_path / "run")
    assert len(run.metrics) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy__rule": "median"}, "how much one client can change"),
        ({"strategy__pre": ["nnm"]}, "strategy.pre"),
        ({"strategy__name": "fedex-lora"}, "besides the sum"),
        ({"strategy__name": "scaffold"}, "besides the sum"),
        ({"strategy__name": "fedstale"}, "besides the sum"),
        ({"strategy__name": "admm"}, "besides the sum"),
        ({"strategy__name": "flag"}, "strategy.rule = 'flag'"),
        ({"strategy__name": "frl"}, "strategy"),
        ({"clients__weights": "capped"}, "all clients count alike"),
        ({"clients__participation": {"kind": "clock"}}, "one known rate"),
        ({"strategy__name": "fed-sb", "adapter__init": "client-dense"}, "before round 1"),
        ({"task__head": "local"}, "not noised"),
        ({"local__client_momentum": 0.9}, "tells who took part"),
        ({"attack__kind": "ipm"}, "attack.knowledge = 'own'"),
        ({"task__validation": 0.2, "run__early_stopping": {}}, "without noise"),
    ],
)
def test_what_a_single_client_could_bend_is_refused_in_a_line(tmp_path, changes, message):
    with pytest.raises(ScenarioError, match=message):
        fedtune.run("quickstart", changes_of(**USER, **changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"delta": 0.2}, "there are 6 clients"),
        ({"adaptive": {}}, "too little for a noise multiplier of 2"),
    ],
)
def test_noise_and_delta_that_cannot_be_are_refused(tmp_path, privacy, message):
    changes = changes_of(privacy={**USER["privacy"], **privacy})
    with pytest.raises(ScenarioError, match=message):
        fedtune.run("quickstart", changes, tmp_path / "run")


def test_the_factor_in_turn_tells_nothing_of_who_came():
    """RoLoRA's turns go on in a round to which nobody came."""
    given = {"clients__participation": {"kind": "bernoulli", "value": 1e-9}}
    changes = changes_of(**USER, **given, strategy__name="rolora")
    federation = build(settle_paths(load_scenario("quickstart", changes)))
    moved = []
    with federation.serving.serving():
        state = start_state(federation, None)
        for server_round in (1, 2):
            before = {name: tensor.clone() for name, tensor in state.arrays.items()}
            one_round(federation, state, server_round)
            moved.append({n for n, t in state.arrays.items() if not torch.equal(t, before[n])})
    assert not [name for name in moved[0] & moved[1] if "lora" in name]


def test_two_runs_on_one_ledger_cannot_both_spend_the_last_round(tmp_path):
    changes = changes_of(**USER, run__rounds=1)
    changes["privacy"] = {**USER["privacy"], "ledger": str(tmp_path / "ledger.jsonl"),
                          "noise_multiplier": None, "epsilon": 4.0}  # fmt: skip
    runs = [build(settle_paths(load_scenario("quickstart", changes))) for _ in range(2)]
    refused: list[RunError] = []

    def reserve(federation):
        try:
            federation.budget.reserve(1)
        except RunError as error:
            refused.append(error)

    threads = [threading.Thread(target=reserve, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    assert len(runs[0].budget.ledger.entries(-1, runs[0].budget.data)) == 1


def test_a_ledger_of_both_mechanisms_tells_each_its_own(tmp_path):
    ledger = str(tmp_path / "ledger.jsonl")
    user = changes_of(**USER, run__rounds=2)
    user["privacy"] = {**USER["privacy"], "ledger": ledger}
    example = small(privacy={**USER["privacy"], "mechanism": "example", "delta": 1e-4,
                             "ledger": ledger})  # fmt: skip
    fedtune.run("quickstart", user, tmp_path / "user")
    own = fedtune.run("quickstart", example, tmp_path / "example")
    assert min(map(int, own.metrics[-1]["epsilon"])) >= 0
    assert list(
        fedtune.run("quickstart", user, tmp_path / "more").summary["privacy"]["clients"]
    ) == ["-1"]
