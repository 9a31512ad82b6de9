"""Attacks in whole runs: who is malicious, what changes, what does not, what rules do about it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fedtune
from fedtune.adversaries.poisoned import Backdoor, CatMap, LabelFlip, Poisoned, draw_malicious
from fedtune.errors import ScenarioError
from fedtune.runs.build import build
from fedtune.runs.loop import one_round, start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario
from tests.runs.kit import adapter_bytes, lines, small

TWELVE = {"clients__count": 12, "clients__participation__value": 1.0}


def built(**changes):
    return build(settle_paths(load_scenario("quickstart", small(**changes))))


def test_malicious_clients_are_drawn_once_from_the_seed():
    clients = list(range(3, 43))
    one = draw_malicious(clients, 0.25, 7)
    assert one == sorted(one)
    assert len(set(one)) == 10
    assert set(one) <= set(clients)
    assert one == draw_malicious(clients, 0.25, 7) != draw_malicious(clients, 0.25, 8)
    assert draw_malicious(clients, 0.0, 7) == []


def test_only_rows_of_malicious_clients_are_flipped_and_test_data_never():
    federation = built(attack__kind="label-flip", attack__fraction=0.5)
    data, task = federation.engine.setting.data, federation.task
    assert isinstance(data, Poisoned)
    bad = set(federation.adversary.malicious)
    for client in task.clients.eligible:
        rows = torch.from_numpy(task.clients.rows(client))
        true, given = task.train.gather(rows).labels, data.gather(rows).labels
        assert torch.equal(given, 9 - true if client in bad else true)
        assert torch.equal(*(d.gather(rows).inputs["pixel_values"] for d in (data, task.train)))
    assert task.test is not data


def test_a_backdoor_changes_a_share_of_the_rows_and_is_measured_on_other_classes():
    federation = built(attack={"kind": "backdoor", "fraction": 0.5, "target": 3, "share": 0.4})
    data, task, adversary = federation.engine.setting.data, federation.task, federation.adversary
    for client in adversary.malicious:
        rows = torch.from_numpy(task.clients.rows(client))
        changed = data.rows[rows]
        assert int(changed.sum()) == round(0.4 * len(rows))
        batch = data.gather(rows)
        assert (batch.labels[changed] == 3).all()
        corner = batch.inputs["pixel_values"][changed][..., -3:, -3:]
        assert (corner == corner.amax()).all()
    rows = torch.from_numpy(adversary.triggered_rows)
    assert not (task.test.gather(rows).labels == 3).any()
    assert (adversary.triggered.gather(rows).labels == 3).all()
    assert len(rows) + int((task.test.labels == 3).sum()) == len(task.test)


def test_the_cat_map_is_arnolds_and_comes_back_after_its_period():
    batch = built().task.train.gather(torch.arange(3))
    pixels = batch.inputs["pixel_values"]
    n, moved = pixels.shape[-1], CatMap()(batch).inputs["pixel_values"]
    for x, y in [(0, 0), (1, 0), (0, 1), (3, 5), (n - 1, n - 2)]:
        assert torch.equal(moved[..., (x + 2 * y) % n, (x + y) % n], pixels[..., y, x])
    matrix, period, power = np.array([[1, 1], [1, 2]]), 1, np.array([[1, 1], [1, 2]])
    while not (power % n == np.eye(2)).all():
        power, period = matrix @ power % n, period + 1
    again = CatMap(period)(batch)
    assert torch.equal(again.inputs["pixel_values"], pixels)
    assert torch.equal(again.labels, batch.labels)


def test_the_changes_restated():
    flip = LabelFlip(10)
    federation = built()
    batch = federation.task.train.gather(torch.arange(6))
    assert torch.equal(flip(flip(batch)).labels, batch.labels)
    tokens = torch.arange(12).view(2, 6)
    seen = torch.ones_like(tokens)
    text = type(batch)({"input_ids": tokens, "attention_mask": seen}, torch.zeros(2).long())
    changed = Backdoor(target=1, token=99)(text)
    assert changed.inputs["input_ids"][:, 1].tolist() == [99, 99]
    assert torch.equal(changed.inputs["input_ids"][:, 2:], tokens[:, 2:])


def test_an_attack_by_nobody_is_no_attack(tmp_path):
    calm = fedtune.run("quickstart", small(), tmp_path / "calm")
    for kind in ("ipm", "label-flip"):
        changes = small(attack__kind=kind, attack__fraction=0.0)
        run = fedtune.run("quickstart", changes, tmp_path / kind)
        assert adapter_bytes(run) == adapter_bytes(calm)
        assert lines(run) == lines(calm)


def test_ipm_turns_the_mean_by_exactly_its_share(tmp_path):
    """With weights alike, mean of h honest and m times -ε·(their mean): (h - m·ε)/(h + m) of it."""
    changes = {
        **TWELVE,
        "clients__weights": "uniform",
        "run__rounds": 1,
        "engine__precision": "float64",
    }
    attacked = built(**changes, attack={"kind": "ipm", "fraction": 0.25, "epsilon": 2.0})

    def update(federation):
        state = start_state(federation, None)
        before = {name: tensor.clone() for name, tensor in state.arrays.items()}
        with federation.serving.serving():
            line = one_round(federation, state, 1)
        return torch.cat([(state.arrays[n] - t).ravel() for n, t in before.items()]), line

    malicious = attacked.adversary.malicious
    assert len(malicious) == 3
    moved, line = update(attacked)
    assert line["malicious"] == 3
    calm = built(**changes)
    calm.serving._directory = type(calm.serving.directory)(
        {
            c: calm.serving.directory.node(c)
            for c in calm.task.clients.eligible
            if c not in malicious
        }
    )
    honest, _ = update(calm)
    assert torch.allclose(moved, honest * (9 - 3 * 2.0) / 12, atol=1e-12)


def test_non_finite_updates_are_set_aside_and_named(tmp_path):
    run = fedtune.run(
        "quickstart",
        small(**TWELVE, attack__kind="non-finite", attack__fraction=0.25),
        tmp_path / "run",
    )
    assert [line["rejected"] for line in run.metrics] == [3, 3]
    assert all("finite" in p["reason"] or "NaN" in p["reason"]
               for line in run.metrics for p in line["problems"])  # fmt: skip
    assert [line["malicious"] for line in run.metrics] == [0, 0]


@pytest.mark.parametrize("kind", ["sign-flip", "gaussian", "uniform", "alie", "min-max", "min-sum",
                                  "mimic", "scaling", "adaptive", "label-flip",
                                  "cat-map", "backdoor"])  # fmt: skip
def test_every_attack_runs_against_a_rule_with_mixing_and_says_what_it_did(tmp_path, kind):
    changes = small(**TWELVE, attack__kind=kind, attack__fraction=0.25, strategy__rule="multi-krum",
                    strategy__pre=["nnm"], strategy__f=3)  # fmt: skip
    run = fedtune.run("quickstart", changes, tmp_path / "run")
    line = run.metrics[-1]
    assert line["malicious"] == 3
    assert sum(line["coefficients"]) == pytest.approx(1.0)
    assert ("attack_success" in line["eval"]) == (kind == "backdoor")


@pytest.mark.long
def test_large_noise_ruins_the_mean_and_not_the_robust_rules(tmp_path):
    changes = {**TWELVE, "local__steps": 6, "local__lr": 1e-2, "local__batch_size": 8,
               "run__rounds": 4, "attack": {"kind": "gaussian", "fraction": 0.25, "sigma": 100.0},
               "clients__partition": {"kind": "iid"}}  # fmt: skip
    found = {}
    for rule in ("mean", "median", "multi-krum", "geometric-median", "trimmed-mean"):
        run = fedtune.run("quickstart", small(**changes, strategy__rule=rule, strategy__f=3),
                          tmp_path / rule)  # fmt: skip
        found[rule] = run.summary["final"]["accuracy"]
    assert found["mean"] < 0.3
    assert min(accuracy for rule, accuracy in found.items() if rule != "mean") > 0.6


def test_a_rule_with_memory_goes_on_where_it_was(tmp_path):
    changes = small(
        **TWELVE, strategy__rule={"name": "centered-clipping", "tau": 0.01}, run__rounds=3
    )
    whole = fedtune.run("quickstart", changes, tmp_path / "whole")
    fedtune.run("quickstart", {**changes, "run.rounds": 2}, tmp_path / "part")
    again = fedtune.resume(tmp_path / "part", {"run.rounds": 3})
    assert adapter_bytes(again) == adapter_bytes(whole)
    assert lines(again) == lines(whole)


def test_an_attack_on_a_factor_that_clients_hold_goes_on_where_it_was(tmp_path):
    """RoLoRA sends a client a factor once; a server that begins again knows it all the same."""
    changes = small(
        **TWELVE, strategy__name="rolora", attack__kind="sign-flip", attack__fraction=0.25,
        run__rounds=4,
    )  # fmt: skip
    whole = fedtune.run("quickstart", changes, tmp_path / "whole")
    fedtune.run("quickstart", {**changes, "run.rounds": 2}, tmp_path / "part")
    again = fedtune.resume(tmp_path / "part", {"run.rounds": 4})
    assert adapter_bytes(again) == adapter_bytes(whole)
    assert lines(again) == lines(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy__rule": "krumm"}, "strategy.rule"),
        ({"strategy__rule": {"name": "krum", "q": 3}}, "strategy.rule.q: no parameter of 'krum'"),
        ({"strategy__pre": ["mixing"]}, "strategy.pre"),
        ({"strategy__rule": "median", "clients__weights": "reported"}, "each client one vote"),
        ({"attack__kind": "ipm", "attack__factor": 2.0}, "attack.factor: unknown key for 'ipm'"),
        ({"attack__kind": "backdoor", "attack__target": 10}, "there are 10 classes"),
        ({"attack__kind": "cat-map", "attack__iterations": 0}, "attack.iterations = 0"),
        ({"attack__fraction": 1.5}, "attack.fraction = 1.5"),
        ({"strategy__f": -1}, "strategy.f = -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(tmp_path, changes, message):
    with pytest.raises(ScenarioError, match=message):
        fedtune.run("quickstart", small(**changes), tmp_path / "run")
    assert not np.any([path.exists() for path in (tmp_path / "run",)])


def test_rules_expect_the_share_of_malicious_clients_that_a_round_has_on_average():
    twenty = {"clients__count": 20, "clients__participation__value": 0.5, "strategy__rule": "krum"}
    cases = [({}, 2), ({"attack__fraction": 0.4}, 4), ({"strategy__f": 3}, 3)]
    for changes, f in cases:
        assert built(**twenty, **changes).strategy.rule.f == f
    each = {"kind": "bernoulli", "value": [0.1] * 10 + [0.9] * 10}
    changes = {**twenty, "clients__participation": each, "attack__fraction": 0.3}
    del changes["clients__participation__value"]
    assert built(**changes).strategy.rule.f == 3
