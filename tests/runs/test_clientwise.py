"""How the final model serves each client, against ways to count it one by one."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fedtune
from fedtune.runs.build import build
from fedtune.runs.clientwise import CLASS_MIX, HELD_OUT, by_client, worst_clients
from fedtune.runs.loop import start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario
from tests.runs.kit import small


def built(**changes):
    return build(settle_paths(load_scenario("quickstart", small(**changes))))


def test_the_class_mix_is_the_mean_over_test_examples_weighted_by_the_clients_classes():
    federation = built()
    state = start_state(federation, None)
    found = by_client(federation, state)
    assert found["measured_on"] == CLASS_MIX
    task, labels = federation.task, federation.task.train.labels
    one = [
        federation.engine.evaluate(state.arrays, task.test, np.asarray([row]))["accuracy"]
        for row in task.test_rows
    ]
    truth = task.test.labels
    for client, metrics in found["clients"].items():
        mine = labels[task.clients.rows(client)]
        weights = np.asarray([(mine == c).sum() / (truth == c).sum() for c in truth])
        assert metrics["accuracy"] == pytest.approx(np.average(one, weights=weights), abs=1e-9)


def test_clients_that_hold_examples_out_do_not_train_on_them_and_are_evaluated_on_them():
    federation = built(clients__holdout=0.3)
    found = by_client(federation, start_state(federation, None))
    assert found["measured_on"] == HELD_OUT
    for client, metrics in found["clients"].items():
        held = federation.clients.held_rows(client)
        trained = federation.clients.training_rows(client)
        assert not set(held) & set(trained)
        assert set(held) | set(trained) == set(federation.task.clients.rows(client))
        arrays = start_state(federation, None).arrays
        expected = federation.engine.evaluate(arrays, federation.task.train, held)
        assert metrics == expected


def test_local_heads_are_evaluated_by_their_clients(tmp_path):
    done = fedtune.run("quickstart", small(task__head="local"), tmp_path / "run")
    found = json.loads((done.path / "clients.json").read_text())
    assert found["measured_on"] == HELD_OUT
    values = {int(k): v["accuracy"] for k, v in found["clients"].items()}
    assert done.summary["clients"]["worst"]["accuracy"] == min(values.values())
    federation = built(task__head="local")
    weights = [len(federation.clients.held_rows(client)) for client in values]
    mean = np.average(list(values.values()), weights=weights)
    assert done.summary["final"]["accuracy"] == pytest.approx(mean)


def test_there_is_nothing_to_say_where_nothing_is_known():
    by_length = {"kind": "iid", "by": "length"}
    intents = load_scenario("intents", {"clients.partition": by_length, "clients.count": 6})
    federation = build(settle_paths(intents))
    assert by_client(federation, start_state(federation, None)) is None
    assert by_client(built(task__data="builtin:synthetic", clients__partition={"kind": "iid"}),
                     start_state(built(), None)) is None  # fmt: skip


def test_worst_and_tenth_know_which_way_is_worse():
    found = {k: {"accuracy": k / 100, "loss": k / 10} for k in range(101)}
    worst = worst_clients(found)
    assert worst["worst"] == {"accuracy": 0.0, "loss": 10.0}
    assert worst["p10"] == pytest.approx({"accuracy": 0.1, "loss": 9.0})
