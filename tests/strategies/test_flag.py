"""The Flag Aggregator as a method: the rule with its knobs, and each client's influence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import fedtune
from fedtune.errors import ScenarioError
from fedtune.rules.base import Updates
from fedtune.rules.flag import Flag
from tests.runs.kit import adapter_bytes, small

ALL = {"clients__participation__value": 1.0}


def test_it_is_the_rule_on_kind_ffa_to_the_bit(tmp_path):
    knobs = {"m": 2, "regularization": 0.5, "iterations": 3, "start": "random"}
    own = {f"strategy__{key}": value for key, value in knobs.items()}
    method = fedtune.run("quickstart", small(strategy__name="flag", **own, **ALL), tmp_path / "a")
    rule = {"strategy__name": "ffa-lora", "strategy__rule": {"name": "flag", **knobs}}
    same = fedtune.run("quickstart", small(**rule, **ALL), tmp_path / "b")
    assert adapter_bytes(method) == adapter_bytes(same)
    plain = fedtune.run("quickstart", small(strategy__name="flag", **ALL), tmp_path / "c")
    assert adapter_bytes(method) != adapter_bytes(plain)
    for line in method.metrics:
        assert len(line["coefficients"]) == line["clients"] == 6
        assert "objective" in line["rule"]


@pytest.mark.parametrize("start", ["uniform", "random"])
def test_the_objective_does_not_rise_from_either_start(start):
    rows = torch.from_numpy(np.random.default_rng(3).normal(size=(9, 30)))
    updates = Updates(rows, torch.full((9,), 1 / 9).double(), seed=4)
    values = [
        Flag(3, 0.5, iterations, start)(updates).notes["objective"] for iterations in (1, 2, 4, 8)
    ]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(values))


def test_a_random_start_is_drawn_by_seed_and_round():
    rows = torch.from_numpy(np.random.default_rng(3).normal(size=(9, 30)))
    weights = torch.full((9,), 1 / 9).double()

    def found(seed, number):
        return Flag(3, 0.0, 1, "random")(Updates(rows, weights, (), number, seed)).coefficients

    assert torch.equal(found(1, 1), found(1, 1))
    assert not torch.equal(found(1, 1), found(1, 2))
    assert not torch.equal(found(1, 1), found(2, 1))


def test_a_whole_space_is_the_mean_of_unit_updates():
    rows = torch.from_numpy(np.random.default_rng(3).normal(size=(5, 30)))
    for start in ("uniform", "random"):
        found = Flag(5, start=start)(Updates(rows, torch.full((5,), 0.2).double())).update
        unit = rows / rows.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found, unit.mean(0) * rows.norm(dim=1).median())


@pytest.mark.parametrize(
    ("knob", "value"), [("m", 0), ("regularization", -1.0), ("iterations", 0), ("start", "far")]
)
def test_knobs_out_of_range_are_refused_by_name(knob, value):
    with pytest.raises(ScenarioError, match=rf"strategy\.{knob} = "):
        fedtune.plan("quickstart", small(strategy__name="flag", **{f"strategy__{knob}": value}))


def test_one_update_is_itself_also_with_pairs():
    rows = torch.from_numpy(np.random.default_rng(3).normal(size=(1, 30)))
    found = Flag(regularization=1.0)(Updates(rows, torch.ones(1).double())).update
    torch.testing.assert_close(found, rows[0])
