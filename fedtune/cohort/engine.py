"""The engine: deals a round's clients into cohorts, and answers for failures and memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from fedtune.adapters.layout import Tensors
from fedtune.cohort.backend import Backend, Setting
from fedtune.cohort.jobs import (
    UNITS,
    Job,
    Result,
    Sums,
    attempt,
    first_gradients,
    look,
    trained,
)
from fedtune.cohort.plan import ClientResult, ClientWork
from fedtune.cohort.sizing import fitting_size, out_of_memory, release
from fedtune.cohort.together import CohortBackend
from fedtune.errors import ClientFailure, RunError
from fedtune.tasks.base import Data, Rows

EVALUATION_ROWS, EVALUATION_POSITIONS = 256, 4096


@dataclass
class Resolved:
    """What the engine settled at run time; stored with the run and used again on resume.

    Attributes:
        backend: `cohort` or `sequential`.
        device: torch's name of the device.
        threads: CPU threads of torch.
        sizes: (first round, cohort size) pairs, one more for each halving after out-of-memory.
        workers: number of Ray workers, cores and GPUs of each; None: this process alone.
    """

    backend: str
    device: str
    threads: int
    sizes: list[tuple[int, int]] = field(default_factory=list)
    workers: tuple[int, int, int] | None = None

    def size(self, server_round: int) -> int:
        """The cohort size in force in a round."""
        return min(size for first, size in self.sizes if first <= server_round)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Resolved:
        """The inverse of `to_dict`."""
        sizes = [(int(first), int(size)) for first, size in values.pop("sizes")]
        workers = values.pop("workers", None)
        return cls(**values, sizes=sizes, workers=workers and tuple(workers))


class Engine:
    """Trains and evaluates clients on a backend.

    Args:
        backend: `cohort` or `sequential`.
        setting: what the backend was made from.
        resolved: settled before or to be settled now.
        cohort_size: the scenario's: the most clients to train together, or `auto`.
        on_resolve: told of each change of `resolved` before it is used.
    """

    def __init__(
        self,
        backend: Backend,
        setting: Setting,
        resolved: Resolved,
        cohort_size: int | str = "auto",
        on_resolve: Callable[[Resolved], None] = lambda resolved: None,
    ) -> None:
        self.backend, self.setting, self.resolved = backend, setting, resolved
        self.cohort_size, self.on_resolve = cohort_size, on_resolve

    @property
    def lanes(self) -> int:
        """How many cohorts are worked on at a time."""
        return 1

    def train(
        self, works: Sequence[ClientWork], server_round: int
    ) -> dict[int, ClientResult | ClientFailure]:
        """Train a round's clients; gives each one's result or failure by its id."""
        return self._in_cohorts(works, server_round, trained)

    def gradients(
        self, works: Sequence[ClientWork], server_round: int
    ) -> dict[int, Tensors | ClientFailure]:
        """The gradient of each client's first step where it starts, by its id."""
        return self._in_cohorts(works, server_round, first_gradients)

    def _in_cohorts(
        self, works: Sequence[ClientWork], server_round: int, job: Job[Result]
    ) -> dict[int, Result | ClientFailure]:
        """Work on a round's clients, cohort by cohort.

        Out of memory, the cohort size is halved and all is done again from the start, so that the
        layout stays a function of (round, clients, size).
        """
        if not works:
            return {}
        while True:
            size = 1
            try:
                settled = self.settle(works, server_round)
                dealt = [c for alike in self._alike(works) for c in self.deal(alike, settled)]
                size = max(map(len, dealt))
                return self.each(dealt, server_round, job)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if size == 1:
                    raise RunError(
                        "out of memory with one client at a time; lower local.batch_size, raise "
                        "local.accumulation, or set engine.precision = 'bfloat16'"
                    ) from error
            release(self.setting.device)
            self._resolve(server_round, max(1, size // 2))

    def settle(self, works: Sequence[ClientWork], server_round: int) -> int:
        """The cohort size of a round, measured on its widest client if none is settled yet."""
        if not self.resolved.sizes:
            self._resolve(server_round, self._first_size(works))
        return self.resolved.size(server_round)

    def evaluate(self, state: Tensors, data: Data, rows: Rows) -> dict[str, float]:
        """Mean loss and metrics of the model with the given trained tensors over rows of data."""
        sums: dict[str, float] = {}
        for found in self.looks(state, data, list(evaluation_batches(rows, data.widths(rows)))):
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value
        units = sums.pop(UNITS, 0.0)
        return self.setting.objective.finish({n: total / units for n, total in sums.items()})

    def looks(self, state: Tensors, data: Data, batches: Sequence[Rows]) -> Iterable[Sums]:
        """What `evaluate` adds up, batch by batch."""
        return (look(self.backend, state, data, batch) for batch in batches)

    def peaks(self) -> list[int]:
        """Most bytes that each process beside this one held at once."""
        return []

    def close(self) -> None:
        """Give back what the engine holds beyond this process."""

    def generate(self, state: Tensors, score: Callable[[nn.Module, torch.device], float]) -> float:
        """What `score` finds for the model with the given trained tensors."""
        with self.backend.holding(state) as model:
            return score(model, self.setting.device)

    def deal(self, works: Sequence[ClientWork], size: int) -> list[list[ClientWork]]:
        """Cohorts of at most a size."""
        return cohorts(works, size)

    def each(
        self, dealt: Sequence[list[ClientWork]], server_round: int, job: Job[Result]
    ) -> dict[int, Result | ClientFailure]:
        """What comes of cohorts, by client."""
        done: dict[int, Result | ClientFailure] = {}
        for cohort in dealt:
            done.update(attempt(self.backend, cohort, server_round, job))
        return done

    def _alike(self, works: Sequence[ClientWork]) -> list[list[ClientWork]]:
        """Clients apart whose frozen tensors are not the same ones (noise on the way to each)."""
        groups: dict[tuple[int, ...], list[ClientWork]] = {}
        for work in works:
            constants = self.setting.layout.training(work.only).constants(work.state)
            places = tuple(tensor.data_ptr() for tensor in constants.values())
            groups.setdefault(places, []).append(work)
        return list(groups.values())

    def _first_size(self, works: Sequence[ClientWork]) -> int:
        if not isinstance(self.backend, CohortBackend):
            return 1
        fitting = self.fitting(max(works, key=_breadth))
        return min(fitting, self.cohort_size) if isinstance(self.cohort_size, int) else fitting

    def fitting(self, widest: ClientWork) -> int:
        """The largest cohort of such clients that fits into memory."""
        assert isinstance(self.backend, CohortBackend)
        return fitting_size(self.backend, widest)

    def _resolve(self, server_round: int, size: int) -> None:
        first = server_round if self.resolved.sizes else 1
        self.resolved.sizes.append((first, size))
        self.on_resolve(self.resolved)


def cohorts(works: Sequence[ClientWork], size: int) -> list[list[ClientWork]]:
    """Deal clients into cohorts of like work: a pure function of the work and the size.

    Most steps first, then the widest, so that padding is between like clients; then by id. The
    number of cohorts is the least possible and their sizes differ by at most one.
    """
    ordered = sorted(works, key=lambda w: (-len(w.steps), -w.batch_rows, -w.positions, w.client))
    count = -(-len(ordered) // size)
    share, extra = divmod(len(ordered), count)
    starts = [i * share + min(i, extra) for i in range(count + 1)]
    return [ordered[a:b] for a, b in itertools.pairwise(starts)]


def _breadth(work: ClientWork) -> tuple[int, int]:
    return work.positions, work.batch_rows


def evaluation_batches(rows: Rows, widths: Rows) -> Iterator[Rows]:
    """Deal rows into batches of like width that fill at most `EVALUATION_POSITIONS`."""
    order = np.argsort(widths, kind="stable")
    start = 0
    while start < len(order):
        most = min(EVALUATION_ROWS, len(order) - start)
        filled = widths[order[start : start + most]] * np.arange(1, most + 1)
        size = max(1, int(np.searchsorted(filled, EVALUATION_POSITIONS, side="right")))
        yield rows[order[start : start + size]]
        start += size
