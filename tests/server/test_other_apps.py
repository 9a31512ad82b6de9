"""Our strategies in other people's Flower apps: what is legal there works, and trouble is said."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedtune.grids import AppClients, CohortGrid
from fedtune.runs.strategies import make_strategy
from fedtune.scenario import load_scenario
from strategies import FedAvg, FedStale

CLIENTS = 4
START = {"w": np.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": np.zeros(3, np.float32)}


def app_of(metrics, broken=()):
    """Clients that move towards a point of their own, and tell what `metrics(client, loss)` is."""
    app = ClientApp()

    def told(message, context):
        client = int(context.node_config["partition-id"])
        arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
        loss = sum(float(np.square(array - client).mean()) for array in arrays.values())
        return client, arrays, {"num-examples": 10 * (client + 1), **metrics(client, loss)}

    @app.train()
    def train(message, context):
        client, arrays, found = told(message, context)
        moved = {n: Array(np.asarray(a + 0.5 * (client - a), a.dtype)) for n, a in arrays.items()}
        if client in broken:
            moved.pop("b")
        content = RecordDict({"arrays": ArrayRecord(moved), "metrics": MetricRecord(found)})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        found = told(message, context)[2]
        return Message(RecordDict({"metrics": MetricRecord(found)}), reply_to=message)

    return app


def started(strategy, app, rounds=3):
    with CohortGrid(AppClients(app, CLIENTS), range(CLIENTS)).serving() as grid:
        arrays = ArrayRecord({name: Array(array) for name, array in START.items()})
        return strategy.start(grid, arrays, num_rounds=rounds)


def test_lists_of_numbers_are_averaged_as_flower_averages_them():
    app = app_of(lambda client, loss: {"loss": loss, "by-epoch": [loss, loss / 2, float(client)],
                                       "steps": [client, 2], "none": []})  # fmt: skip
    theirs, ours = (started(strategy, app) for strategy in (FlowerFedAvg(), FedAvg()))
    for name, array in theirs.arrays.items():
        np.testing.assert_allclose(ours.arrays[name].numpy(), array.numpy(), rtol=1e-6)
        assert np.abs(array.numpy() - START[name]).max() > 0.5
    for way in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
        for number, expected in getattr(theirs, way).items():
            found = getattr(ours, way)[number]
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                assert found[key] == pytest.approx(value, rel=1e-6)
    assert len(ours.train_metrics_clientapp[3]["by-epoch"]) == 3


def test_what_cannot_be_averaged_stops_neither_training_nor_the_app():
    """Histories of unequal length: Flower's own strategy ends here."""
    app = app_of(lambda client, loss: {"loss": loss, "by-epoch": [loss] * (client + 1)})
    with pytest.raises(ValueError, match="zip"):
        started(FlowerFedAvg(), app)
    found = started(FedAvg(), app)
    plain = started(FedAvg(), app_of(lambda client, loss: {"loss": loss}))
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(found.arrays[name].numpy(), array.numpy())
    for way in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
        assert getattr(found, way) == getattr(plain, way)


@pytest.mark.parametrize("made", [FedAvg, FedStale])
def test_rounds_without_a_usable_reply_are_in_the_result_and_warned_of(made, caplog):
    app = app_of(lambda client, loss: {"loss": loss}, broken=range(CLIENTS))
    found = started(made(), app, rounds=2)
    expected = {"clients": 0, "failures": 0, "rejected": CLIENTS, "lost": 0}
    assert {n: dict(m) for n, m in found.train_metrics_clientapp.items()} == dict.fromkeys(
        (1, 2), expected
    )
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    for number in (1, 2):
        assert any(
            f"no reply of round {number} can be used: 0 failed, 4 set aside, 0 lost" in text
            for text in warned
        )
    assert any("misses b" in text for text in warned)


def test_one_usable_reply_is_enough_to_say_nothing(caplog):
    app = app_of(lambda client, loss: {"loss": loss}, broken=range(1, CLIENTS))
    found = started(FedAvg(), app, rounds=1)
    assert dict(found.train_metrics_clientapp[1]).keys() == {"loss"}
    assert "can be used" not in caplog.text


def test_evaluations_that_cannot_be_used_are_named(caplog):
    app = app_of(lambda client, loss: {"loss": float("nan")})
    found = started(FedAvg(), app, rounds=1)
    assert not found.evaluate_metrics_clientapp
    assert "evaluation of client 2: metric loss = nan" in caplog.text
    assert "no evaluation of round 1 can be used" in caplog.text


def test_a_run_of_ours_before_silences_no_strategy_of_an_app(caplog):
    """Runs tell of replies themselves; in the same process an app's own strategy still warns."""
    assert not make_strategy(load_scenario("quickstart")).warns
    app = app_of(lambda client, loss: {"loss": loss}, broken=range(CLIENTS))
    started(FedAvg(), app, rounds=1)
    assert "no reply of round 1 can be used" in caplog.text
