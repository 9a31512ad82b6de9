"""How long training and evaluating take, from a few steps.

A step of a cohort costs a fixed part and a part for each padded position that the model sees; both
come from timing the first cohort and one client alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedtune.adapters.layout import Tensors
from fedtune.cohort.plan import ClientWork
from fedtune.runs.build import Federation
from fedtune.tasks.base import Data, Rows

PROBE_STEPS, EVALUATED_ROWS = 4, 512
MESSAGE_SECONDS = 1e-3


@dataclass(frozen=True)
class Cost:
    """Seconds of a step, and of a padded position in it."""

    step: float
    position: float


def probe(federation: Federation, cohort: Sequence[ClientWork]) -> Cost:
    """Time a few steps of a cohort and of one client alone."""
    train, data = federation.engine.backend.train, federation.engine.setting.data
    measured = []
    for works in (list(cohort), list(cohort[:1])):
        short = [replace(w, steps=w.steps[:PROBE_STEPS], epoch_ends=(PROBE_STEPS,)) for w in works]
        train([replace(w, steps=w.steps[:1]) for w in short], 1)
        steps, positions = folded(short, data)
        started = time.perf_counter()
        train(short, 1)
        _wait(federation)
        measured.append((time.perf_counter() - started, steps, positions))
    (whole, steps, positions), (alone, few, narrow) = measured
    spread = positions / steps - narrow / few
    slope = (whole / steps - alone / few) / spread if spread > 0 else 0.0
    fixed = alone / few - slope * narrow / few
    if slope <= 0 or fixed < 0:
        return Cost(0.0, whole / positions)
    return Cost(fixed, slope)


def folded(cohort: Sequence[ClientWork], data: Data) -> tuple[int, int]:
    """Steps of a cohort, and the padded positions that the model sees in them."""
    steps = max(len(work.steps) for work in cohort)
    total = 0
    for step in range(steps):
        active = [work.steps[step] for work in cohort if step < len(work.steps)]
        for micro in range(max(map(len, active))):
            batches = [batches[micro] for batches in active if micro < len(batches)]
            rows = max(map(len, batches)) * len(active)
            total += rows * int(data.widths(np.concatenate(batches)).max())
    return steps, max(total, 1)  # private batches may all be empty


def train_seconds(
    federation: Federation, clients: list[int], server_round: int, start: Tensors, cost: Cost
) -> float:
    """Seconds of a round's training, with its messages."""
    if not clients:
        return 0.0
    engine = federation.engine
    works = federation.clients.works(clients, server_round, start)
    each = []
    for cohort in engine.deal(works, engine.resolved.size(1)):
        steps, positions = folded(cohort, engine.setting.data)
        each.append(cost.step * steps + cost.position * positions)
    return MESSAGE_SECONDS * len(clients) + max(max(each), sum(each) / engine.lanes)


def evaluation_seconds(federation: Federation, start: Tensors) -> float:
    """Seconds of one evaluation, from some of its rows (with local heads: of the clients' own)."""
    task, engine = federation.task, federation.engine
    local = federation.scenario.task.head == "local"
    data, rows = (task.train, _held_out(federation)) if local else (task.test, task.test_rows)
    if not len(rows):
        return 0.0
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), EVALUATED_ROWS)).astype(np.int64)]
    started = time.perf_counter()
    engine.evaluate(start, data, sample)
    _wait(federation)
    seconds = time.perf_counter() - started
    seconds *= float(data.widths(rows).sum() / data.widths(sample).sum())
    if task.exact_match is not None:
        started = time.perf_counter()
        engine.generate(start, task.exact_match.first())
        seconds += (time.perf_counter() - started) * task.exact_match.parts
    return seconds


def _held_out(federation: Federation) -> Rows:
    task = federation.task
    share = federation.scenario.clients.held_share
    rows = np.concatenate([task.clients.rows(c) for c in task.clients.eligible])
    return rows[: max(1, int(len(rows) * share))]


def _wait(federation: Federation) -> None:
    if federation.engine.setting.device.type == "cuda":
        torch.cuda.synchronize(federation.engine.setting.device)
