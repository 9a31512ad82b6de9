"""Server optimisers against Flower's own strategies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi
from flwr.serverapp.strategy import FedAvg as FlowersFedAvg

import fedtune
from fedtune.rules import make_server_optimizer
from strategies import FedAvg
from tests.runs.kit import adapter_bytes, lines, small
from tests.strategies.kit import Federation

CASES = {
    "momentum": (FedAvgM, {"server_momentum": 0.9}, {}),
    "adam": (FedAdam, {}, {}),
    "yogi": (FedYogi, {}, {}),
    "adagrad": (FedAdagrad, {}, {}),
    "adam with its own rate": (FedAdam, {"eta": 0.3, "tau": 0.1}, {"lr": 0.3, "tau": 0.1}),
}


class Aggregated(FlowersFedAvg):
    """Gives an aggregate that was decided in advance."""

    def aggregate_train(self, server_round, replies):
        return ArrayRecord({"x": Array(replies[0])}), MetricRecord()


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_flowers_strategy(case, monkeypatch):
    cls, flowers, ours = CASES[case]
    monkeypatch.setattr(FlowersFedAvg, "aggregate_train", Aggregated.aggregate_train)
    oracle, mine = cls(**flowers), make_server_optimizer(case.split()[0], ours)
    random = np.random.default_rng(0)
    model = random.normal(size=6)
    for server_round in range(1, 5):
        update = random.normal(size=6) * 0.1
        oracle.current_arrays = ArrayRecord({"x": Array(model)}) if cls is FedAvgM else {"x": model}
        arrays, _ = oracle.aggregate_train(server_round, [model + update])
        step = mine(torch.from_numpy(update), server_round).numpy()
        np.testing.assert_allclose(model + step, arrays["x"].numpy(), rtol=1e-10)
        model = model + step


@pytest.mark.parametrize("name", ["momentum", "yogi"])
def test_its_memory_survives_a_resume(tmp_path, name):
    changes = small(strategy__server_optimizer=name, run__rounds=3)
    whole = fedtune.run("quickstart", changes, tmp_path / "whole")
    fedtune.run("quickstart", {**changes, "run.rounds": 2}, tmp_path / "part")
    again = fedtune.resume(tmp_path / "part", {"run.rounds": 3})
    assert adapter_bytes(again) == adapter_bytes(whole)
    assert lines(again) == lines(whole)


def test_momentum_without_memory_is_plain_averaging(tmp_path):
    plain = fedtune.run("quickstart", small(), tmp_path / "plain")
    rule = {"name": "momentum", "beta": 0.0}
    other = fedtune.run("quickstart", small(strategy__server_optimizer=rule), tmp_path / "other")
    assert adapter_bytes(plain) == adapter_bytes(other)


@pytest.mark.parametrize("name", ["adam", "yogi", "adagrad"])
def test_a_square_that_overflows_is_no_memory_for_ever(name):
    """1e30 fits into float32 and its square does not: v would be infinite, and no step follow."""
    huge = {"on": False}

    def answer(client, sent):
        return {"w": sent["w"] + (1e30 if huge["on"] and client == 0 else 1.0)}

    made = make_server_optimizer(name)
    federation = Federation(FedAvg(server_optimizer=made), {"w": torch.zeros(3)}, answer, 4)
    before = federation.go()["w"].clone()
    memory = made.state_dict()
    huge["on"] = True
    assert torch.equal(federation.go()["w"], before)
    assert federation.strategy.report.notes["overflow"] == 1.0
    assert all(torch.equal(made.state_dict()[key], memory[key]) for key in memory)
    huge["on"] = False
    assert float(federation.go()["w"].min()) > float(before.max())
