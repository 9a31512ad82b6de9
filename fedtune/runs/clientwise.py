"""How the final model serves each client, and those it serves worst."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import MetricRecord

from fedtune.grids.arrays import records
from fedtune.grids.directory import directory_of
from fedtune.reporting.partition import class_counts
from fedtune.runs.build import Federation
from fedtune.runs.evaluating import ask_clients
from fedtune.runs.loop import ServerState
from fedtune.tasks.clients import DealtRows

Found = dict[int, dict[str, float]]
HELD_OUT, CLASS_MIX = "examples that it holds out", "test data in the client's mix of classes"
SIMULATED = " (known in a simulation only: it is of their data, without noise)"
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "nmsd"})
WORST_SHARE = 10


def by_client(federation: Federation, state: ServerState) -> dict[str, Any] | None:
    """Metrics of the final model by client, and what they were measured on.

    Clients that hold examples out are evaluated on those. Otherwise, where examples are dealt by
    class, a client's metric is that of the test data in its own mix of classes: the mean over
    classes of the test metric, weighted by the client's share of each.

    Returns:
        `measured_on` and `clients` (id to metrics), or None where neither can be had.
    """
    if federation.scenario.task.head == "local":
        found, measured = _asked(federation, state), HELD_OUT
    elif not isinstance(federation.task.clients, DealtRows):
        return None
    elif federation.clients.holdout:
        found, measured = _held_out(federation, state), HELD_OUT
    elif _dealt_by_class(federation):
        found, measured = _class_mix(federation, state), CLASS_MIX
    else:
        return None
    if federation.budget is not None:
        measured += SIMULATED
    return {"measured_on": measured, "clients": found} if found else None


def worst_clients(found: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The worst client's value of each metric, and the value that one client in ten falls short of.

    Args:
        found: metrics by client.
    """
    metrics = next(iter(found.values()))
    columns = {name: np.asarray([one[name] for one in found.values()]) for name in metrics}
    lower = LOWER_IS_BETTER
    tail = {n: 100 - WORST_SHARE if n in lower else WORST_SHARE for n in metrics}
    return {
        "worst": {n: float(v.max() if n in lower else v.min()) for n, v in columns.items()},
        "p10": {n: float(np.percentile(v, tail[n])) for n, v in columns.items()},
    }


def _asked(federation: Federation, state: ServerState) -> Found:
    with federation.serving.serving():
        replies = ask_clients(federation, state.arrays, state.round)
        known = directory_of(federation.grid)
        found = {}
        for message in replies:
            if message.has_error():
                continue
            values = dict(records(message.content, MetricRecord)[0])
            if values.pop("num-examples"):
                client = known.client(message.metadata.src_node_id)
                found[client] = {name: float(value) for name, value in values.items()}  # type: ignore[arg-type]
    return dict(sorted(found.items()))


def _held_out(federation: Federation, state: ServerState) -> Found:
    data = federation.task.train
    found = {}
    for client in federation.task.clients.eligible:
        rows = federation.clients.held_rows(client)
        if len(rows):
            found[client] = federation.engine.evaluate(state.arrays, data, rows)
    return found


def _dealt_by_class(federation: Federation) -> bool:
    task, section = federation.task, federation.scenario.clients.partition
    return task.train.labels is not None and section.kind != "natural" and section.by is None


def _class_mix(federation: Federation, state: ServerState) -> Found:
    task, engine = federation.task, federation.engine
    labels, truth = task.train.labels, task.test.labels
    assert labels is not None
    assert truth is not None
    truth = truth[task.test_rows]
    tested = np.unique(truth)
    of_class = [
        engine.evaluate(state.arrays, task.test, task.test_rows[truth == c]) for c in tested
    ]
    eligible = list(task.clients.eligible)
    parts = [task.clients.rows(client) for client in eligible]
    counts = class_counts(parts, labels, len(task.classes))[:, tested].astype(np.float64)
    total = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(total, 1)
    values = {name: shares @ np.asarray([one[name] for one in of_class]) for name in of_class[0]}
    return {
        client: {name: float(column[index]) for name, column in values.items()}
        for index, client in enumerate(eligible)
        if total[index] > 0
    }
