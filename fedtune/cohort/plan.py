"""What a client does in a round: its batches, its learning rates, when it stops early.

All of it is a pure function of (seed, round, client), so cohort and sequential backends and a
deployed client follow the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedtune.adapters.layout import Tensors
from fedtune.cohort.pull import Pull
from fedtune.privacy.example import ExampleNoise
from fedtune.randomness import generator, key_of
from fedtune.scenario.local import EarlyStopping, LocalSection
from fedtune.tasks.base import Rows

PARTS = 4  # of a batch, into which Poisson samples are cut, so that little is padded


@dataclass(frozen=True)
class ClientWork:
    """One client's training in one round.

    Attributes:
        client: logical id.
        state: trained tensors it starts from (sent ones and its own), and those that it is sent and
            does not train; these are the same for all clients of a cohort.
        steps: optimiser steps, each a list of batches, each the rows of the data to take.
        epoch_ends: number of steps done at the end of each pass over its data.
        dropout_key: key of its dropout stream; None: without dropout.
        examples: how many examples it holds.
        positions: padded positions (rows times the widest) of its largest batch.
        pull: what the method adds to its objective.
        only: names of the tensors that are trained this time; None: all that can be.
        noise: what its steps are protected by, if they are; a step may then have no batch at all.
    """

    client: int
    state: Tensors
    steps: tuple[tuple[Rows, ...], ...]
    epoch_ends: tuple[int, ...]
    dropout_key: int | None
    examples: int
    positions: int = 1
    pull: Pull | None = None
    only: frozenset[str] | None = None
    noise: ExampleNoise | None = None

    @property
    def batch_rows(self) -> int:
        """Rows that are worked on together: of its largest batch, or all parts of a private one."""
        if self.noise is not None:
            return max(sum(map(len, step)) for step in self.steps)
        return max(len(batch) for step in self.steps for batch in step)


@dataclass(frozen=True)
class ClientResult:
    """What a client has after its round.

    Attributes:
        client: logical id.
        tensors: all tensors it trained.
        loss: mean training loss over its steps; 0 where it is private.
        steps: optimiser steps done.
        examples: how many examples it holds.
        rates: sum of the learning rates of its steps.
    """

    client: int
    tensors: Mapping[str, Tensor]
    loss: float
    steps: int
    examples: int
    rates: float = 1.0


def plan_work(
    client: int,
    server_round: int,
    rows: Rows,
    state: Tensors,
    local: LocalSection,
    seed: int,
    widths: Rows | None = None,
    pull: Pull | None = None,
    again: int = 0,
    only: frozenset[str] | None = None,
    noise: ExampleNoise | None = None,
) -> ClientWork:
    """Draw a client's batches for a round.

    Args:
        rows: the client's rows of the data, not empty.
        widths: positions that each of them fills; by default 1.
        pull: what the method adds to its objective.
        again: the how many-th training of the round it is, from 0; each has batches of its own.
        only: names of the tensors that are trained.
        noise: what its steps are protected by; batches are then Poisson samples.
    """
    if widths is None:
        widths = np.ones(len(rows), dtype=np.int64)
    place = (server_round, client, again) if again else (server_round, client)
    key = key_of("dropout", seed, *place)
    if noise is not None:
        drawn = noise.batches(len(rows), planned_steps(len(rows), local))
        most = max((_filled(widths, one) for one in drawn if len(one)), default=1)
        size = max(1, local.batch_size // PARTS)
        taken = tuple(_parts(rows[one], size) for one in drawn)
        return ClientWork(client, state, taken, (), key, len(rows), most, pull, only, noise)
    deal = _Deal(rows, widths, local, seed, place)
    if local.epochs is not None:
        epochs = [deal.epoch() for _ in range(local.epochs)]
        steps = [step for epoch in epochs for step in _group(epoch, local.accumulation)]
        per_epoch = len(_group(epochs[0], local.accumulation))
        ends = [per_epoch * (e + 1) for e in range(local.epochs)]
    else:
        steps, ends = _fixed_steps(deal, local)
    return ClientWork(
        client, state, tuple(steps), tuple(ends), key, len(rows), deal.positions, pull, only
    )


def full_work(client: int, rows: Rows, state: Tensors, batch_size: int) -> ClientWork:
    """One step without dropout over all of a client's rows, in batches that are added up."""
    return ClientWork(client, state, (_parts(rows, batch_size),), (1,), None, len(rows))


def planned_steps(examples: int, local: LocalSection) -> int:
    """Optimiser steps of a client with so many examples in a round, unless it stops early."""
    if local.steps is not None:
        return local.steps
    assert local.epochs is not None
    batches = -(-examples // local.batch_size)
    return local.epochs * -(-batches // local.accumulation)


def sample_rate(examples: int, local: LocalSection) -> float:
    """q of a private client: one over the steps of a pass over its data."""
    return 1.0 / -(-examples // (local.batch_size * local.accumulation))


def _parts(rows: Rows, size: int) -> tuple[Rows, ...]:
    return tuple(rows[i : i + size] for i in range(0, len(rows), size))


def _filled(widths: Rows, batch: Rows) -> int:
    """Padded positions of a batch."""
    return len(batch) * int(widths[batch].max())


class _Deal:
    """Deals a client's rows into batches, epoch by epoch."""

    def __init__(
        self,
        rows: Rows,
        widths: Rows,
        local: LocalSection,
        seed: int,
        place: tuple[int, ...],
    ) -> None:
        self.rows, self.widths, self.local = rows, widths, local
        self.draw = generator("batches", seed, *place)
        if local.group_by_length:
            self.together = generator("lengths", seed, place[0])
        self.positions = 1

    def epoch(self) -> list[Rows]:
        """Batches of one pass, each row once."""
        order = self.draw.permutation(len(self.rows))
        size = self.local.batch_size
        if self.local.group_by_length:
            order = order[np.argsort(self.widths[order], kind="stable")]
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        if self.local.group_by_length:
            batches = [batches[i] for i in self._visits(len(batches))]
        self.positions = max(self.positions, *(_filled(self.widths, batch) for batch in batches))
        return [self.rows[batch] for batch in batches]

    def _visits(self, batches: int) -> list[int]:
        """Which batch, of the shortest to the longest, comes when: alike for all clients, so that
        those of a cohort meet short and long batches in the same step."""
        return [int(i) for i in self.together.permutation(batches)]


def _group(batches: list[Rows], size: int) -> list[tuple[Rows, ...]]:
    return [tuple(batches[i : i + size]) for i in range(0, len(batches), size)]


def _fixed_steps(deal: _Deal, local: LocalSection) -> tuple[list[tuple[Rows, ...]], list[int]]:
    assert local.steps is not None
    needed = local.steps * local.accumulation
    per_epoch = math.ceil(len(deal.rows) / local.batch_size)
    batches: list[Rows] = []
    while len(batches) < needed:
        batches += deal.epoch()
    ends = [-(-end // local.accumulation) for end in range(per_epoch, needed + 1, per_epoch)]
    return _group(batches[:needed], local.accumulation), ends


def step_rates(local: LocalSection, steps: int, server_round: int, rounds: int) -> list[float]:
    """The learning rate of each step of a client's round: base · over rounds · within the round.

    Linear and cosine decay go from 1 towards 0 over `steps` (or `rounds`), so that the first
    round and the first step after warm-up have the full rate. Beyond the last one of `rounds` the
    rate stays what it was in that one; exponential decay knows no last round.
    """
    base = local.lr * _decay(local.round_schedule, server_round - 1, rounds, local.round_decay)
    after = max(steps - local.warmup, 1)
    return [
        base
        * min(1.0, (s + 1) / local.warmup if local.warmup else 1.0)
        * _decay(local.schedule, max(s - local.warmup, 0), after, 1.0)
        for s in range(steps)
    ]


def _decay(kind: str, done: int, total: int, factor: float) -> float:
    last = min(done, total - 1)
    if kind == "linear":
        return 1.0 - last / total
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * (last / total)))
    return factor**done if kind == "exponential" else 1.0


def out_of_patience(losses: Sequence[float], rule: EarlyStopping) -> bool:
    """Whether the last `patience` losses all failed to beat the best before by `min_delta`."""
    best, waited = math.inf, 0
    for loss in losses:
        if loss < best - rule.min_delta:
            best, waited = loss, 0
        else:
            waited += 1
    return waited >= rule.patience
