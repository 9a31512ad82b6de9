"""Messages of a strategy, and means of metrics."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from hypothesis import given
from hypothesis import strategies as st

from fedtune.grids.arrays import to_record
from fedtune.grids.cohort_grid import CohortGrid
from fedtune.server.messages import alike, mean_metrics
from strategies.fedavg import FedAvg

REPLIES = st.lists(
    st.fixed_dictionaries(
        {
            "num-examples": st.one_of(st.integers(1, 10**12), st.floats(1e-6, 1e12)),
            "loss": st.floats(-1e30, 1e30),
            "steps": st.integers(-(10**9), 10**9),
        }
    ),
    min_size=1,
    max_size=9,
)


NUMBERS = st.one_of(
    st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3),
    st.lists(st.integers(-(10**9), 10**9), min_size=3, max_size=3),
)
HISTORIES = st.lists(
    st.fixed_dictionaries({"num-examples": st.integers(1, 10**6), "by-epoch": NUMBERS,
                           "nothing": st.just([])}),
    min_size=1,
    max_size=9,
)  # fmt: skip


@given(st.one_of(REPLIES, HISTORIES))
def test_means_of_metrics_are_flowers(replies):
    contents = [RecordDict({"metrics": MetricRecord(reply)}) for reply in replies]
    expected = aggregate_metricrecords(contents, "num-examples")
    assert dict(mean_metrics(contents, "num-examples")) == dict(expected)


@given(REPLIES, st.data())
def test_a_metric_that_replies_hold_in_several_forms_has_no_mean(replies, data):
    """Lists of unequal length, and numbers beside lists, for which Flower raises."""
    forms = st.sampled_from([None, 0, 1, 2])
    drawn = [data.draw(forms) for _ in replies]
    values = [1.0 if form is None else [1.0] * form for form in drawn]
    contents = [
        RecordDict({"metrics": MetricRecord({**reply, "history": value})})
        for reply, value in zip(replies, values, strict=True)
    ]
    found = mean_metrics(alike(contents), "num-examples")
    assert ("history" in found) == (len(set(drawn)) == 1)
    assert found["loss"] == mean_metrics(
        [RecordDict({"metrics": MetricRecord(reply)}) for reply in replies], "num-examples"
    )["loss"]  # fmt: skip


def test_a_means_function_of_the_users_is_used():
    assert FedAvg(train_metrics_aggr_fn=aggregate_metricrecords).train_metrics_aggr_fn is (
        aggregate_metricrecords
    )


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_each_message_has_a_config_of_its_own_over_shared_arrays(kind):
    grid = CohortGrid(clients=None, ids=range(3))
    strategy, config = FedAvg(fraction_train=1.0, fraction_evaluate=1.0), ConfigRecord({"lr": 0.5})
    configure = {"train": strategy.configure_train, "evaluate": strategy.configure_evaluate}[kind]
    with grid.serving():
        first, second, _ = configure(4, to_record({"x": torch.ones(2)}), config, grid)
    assert dict(first.content["config"]) == {"lr": 0.5, "server-round": 4}
    first.content["config"]["lr"] = 0.1
    assert dict(second.content["config"]) == {"lr": 0.5, "server-round": 4}
    assert dict(config) == {"lr": 0.5}
    assert first.content["arrays"] is second.content["arrays"]
