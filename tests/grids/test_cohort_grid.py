"""The in-process grid: a stranger's app unchanged, identities put back, failures named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from fedtune.errors import ClientFailure
from fedtune.grids.cohort_grid import CohortGrid
from fedtune.grids.compat import task_identity
from fedtune.grids.metered import MeteredGrid
from fedtune.grids.strangers import AppClients
from strategies import FedAvg

CLIENTS = 4


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))


def minimal_app() -> ClientApp:
    """An app as Flower's own PyTorch template makes one: its own model, loop and state."""
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        model = net()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        part = int(context.node_config["partition-id"])
        draw = torch.Generator().manual_seed(part)
        x = torch.randn(16, 3, generator=draw)
        y = x.sum(1, keepdim=True) + 0.1 * part
        optimizer = torch.optim.SGD(model.parameters(), lr=msg.content["config"]["lr"])
        for _ in range(3):
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seen = context.state.get("seen", MetricRecord({"rounds": 0}))
        context.state["seen"] = MetricRecord({"rounds": int(seen["rounds"]) + 1})
        msg.content["arrays"].clear()
        metrics = MetricRecord(
            {
                "num-examples": 16 + part,
                "loss": float(loss),
                "rounds": context.state["seen"]["rounds"],
            }
        )
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=msg)

    @app.evaluate()
    def evaluate(msg: Message, context: Context) -> Message:
        metrics = MetricRecord(
            {"num-examples": 1, "partitions": context.node_config["num-partitions"]}
        )
        return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)

    return app


def run(strategy, rounds=3):
    from flwr.app import ConfigRecord

    grid = MeteredGrid(CohortGrid(AppClients(minimal_app(), CLIENTS), range(CLIENTS)))
    with grid.inner.serving():
        return strategy.start(
            grid, ArrayRecord(net().state_dict()), num_rounds=rounds,
            train_config=ConfigRecord({"lr": 0.05}),
        )  # fmt: skip


def test_a_strangers_app_and_flowers_own_strategy_run_unchanged():
    result = run(FlowerFedAvg())
    losses = [result.train_metrics_clientapp[r]["loss"] for r in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]
    assert result.train_metrics_clientapp[3]["rounds"] == 3
    assert result.evaluate_metrics_clientapp[3]["partitions"] == CLIENTS


def test_our_fedavg_equals_flowers_on_a_strangers_app():
    theirs, ours = run(FlowerFedAvg()), run(FedAvg())
    for name, array in theirs.arrays.items():
        np.testing.assert_allclose(ours.arrays[name].numpy(), array.numpy(), atol=1e-6)
    assert ours.train_metrics_clientapp[3]["loss"] == pytest.approx(
        theirs.train_metrics_clientapp[3]["loss"], rel=1e-5
    )


def test_the_readmes_few_lines_work():
    from fedtune.grids import AppClients, CohortGrid
    from strategies import FFALoRA

    strategy = FFALoRA(fraction_train=0.5, min_train_nodes=1)
    with CohortGrid(AppClients(minimal_app(), 4), range(4)).serving() as grid:
        from flwr.app import ConfigRecord

        arrays, config = ArrayRecord(net().state_dict()), ConfigRecord({"lr": 0.05})
        result = strategy.start(grid, arrays, num_rounds=3, train_config=config)
    assert result.train_metrics_clientapp[3]["loss"] < result.train_metrics_clientapp[1]["loss"]


def test_flowers_identity_is_put_back():
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    with task_identity(42):
        assert TaskIdentity.run_id == 42
        with task_identity(43):
            assert TaskIdentity.run_id == 43
        assert TaskIdentity.run_id == 42
    assert (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id) == before


def failing_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 2:
            raise OSError("disk gone")
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"a": msg.content["arrays"], "m": metrics}), reply_to=msg)

    return app


def test_a_failing_client_stops_the_run_with_its_name_or_is_skipped_and_counted():
    arrays = ArrayRecord({"x": torch.zeros(2)})
    for policy in ("raise", "skip"):
        grid = CohortGrid(AppClients(failing_app(), CLIENTS), range(CLIENTS), policy)
        strategy = FedAvg(fraction_evaluate=0.0)
        with grid.serving():
            if policy == "raise":
                with pytest.raises(ClientFailure, match="client 2 failed in train: OSError: disk"):
                    strategy.start(grid, arrays, num_rounds=1)
            else:
                strategy.start(grid, arrays, num_rounds=1)
                assert strategy.report.used == [0, 1, 3]
                assert list(strategy.report.failed) == [2]
                assert "disk gone" in strategy.report.failed[2]


def test_bytes_are_counted_both_ways_by_type():
    grid = MeteredGrid(CohortGrid(AppClients(minimal_app(), CLIENTS), range(CLIENTS)))
    with grid.inner.serving():
        from flwr.app import ConfigRecord

        FedAvg().start(
            grid, ArrayRecord(net().state_dict()), 1, train_config=ConfigRecord({"lr": 0.05})
        )
    numbers = sum(p.numel() for p in net().parameters())
    down, up = grid.take("train")
    assert down.payload == up.payload == CLIENTS * numbers * 4
    assert grid.take("evaluate")[1].payload == 0
    assert grid.take("train")[0].payload == 0
