"""Steps of clients in metrics are those that were done, not those that were planned."""

from __future__ import annotations

import pytest
from flwr.app import MetricRecord, RecordDict

from fedtune.apps.rounds import STEPS
from fedtune.cohort.plan import ClientResult, planned_steps
from fedtune.runs.build import build
from fedtune.runs.loop import one_round, start_state
from fedtune.runs.settling import settle_paths
from fedtune.runs.traffic import traffic
from fedtune.scenario import load_scenario
from fedtune.server.messages import alike, steps_told
from tests.runs.kit import small


def trained(work):
    return {n: t for n, t in work.state.items() if work.only is None or n in work.only}


def one_line(steps_of, monkeypatch, **changes):
    """The line of a round whose clients do as many steps as a function of their work says."""
    made = build(settle_paths(load_scenario("quickstart", small(**changes))))
    done = {}

    def train(works, server_round):
        for work in works:
            done[work.client] = done.get(work.client, 0) + steps_of(work)
        return {
            w.client: ClientResult(w.client, trained(w), 1.0, steps_of(w), w.examples)
            for w in works
        }

    monkeypatch.setattr(made.engine, "train", train)
    state = start_state(made, None)
    with made.serving.serving():
        return made, done, one_round(made, state, 1)


EARLY = {"local__early_stopping": {"patience": 1}, "local__steps": None, "local__epochs": 4}


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "rolora"])
def test_of_clients_that_stop_early_the_steps_done_are_counted(strategy, monkeypatch):
    changes = {**EARLY, "strategy__name": strategy, "local__optimizer": "sgd"}
    _, done, line = one_line(lambda work: 1 + work.client % 3, monkeypatch, **changes)
    assert len(done) == 3
    assert line["client_steps"] == sum(1 + client % 3 for client in done)
    assert set(line["train"]) == {"loss"}


def test_of_others_those_that_were_planned(monkeypatch):
    made, _, line = one_line(lambda work: len(work.steps), monkeypatch, **EARLY)
    sizes = {c: len(made.clients.training_rows(c)) for c in line["client_ids"]}
    local = made.scenario.local
    assert line["client_steps"] == sum(planned_steps(n, local) for n in sizes.values())
    assert made.strategy.report.steps == {}
    some = sizes.popitem()[0]
    _, _, mixed = one_line(
        lambda work: 1 if work.client == some else len(work.steps), monkeypatch, **EARLY
    )
    assert mixed["client_steps"] == 1 + sum(planned_steps(n, local) for n in sizes.values())


def test_a_client_that_trains_several_times_a_round_does_the_steps_of_all(monkeypatch):
    changes = {"strategy__name": "rerce", "strategy__first": 3}
    made, done, line = one_line(lambda work: len(work.steps), monkeypatch, **changes)
    assert line["client_steps"] == sum(done.values()) == 3 * 2 * 3
    foreseen = traffic(made, start_state(made, None).arrays, [line["client_ids"]])
    assert foreseen.up.framing == line["framing_up"]
    assert foreseen.up.payload == line["bytes_up"]


def replies(*metrics):
    return [RecordDict({"metrics": MetricRecord(one)}) for one in metrics]


def test_what_clients_tell_of_steps_is_no_metric_to_be_averaged():
    told = replies(
        {"num-examples": 4, "loss": 2.0, STEPS: 3},
        {"num-examples": 2, "loss": 1.0},
        {"num-examples": 2, "loss": 1.0, STEPS: -5},
    )
    assert steps_told(dict(enumerate(told))) == {0: 3, 2: 0}
    assert [set(one["metrics"]) for one in alike(told)] == [{"num-examples", "loss"}] * 3
    assert alike(told[1:2]) == told[1:2]
