"""The engine of a run whose cohorts are worked on by a pool of workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedtune.adapters.layout import Tensors
from fedtune.cohort.engine import Engine, cohorts
from fedtune.cohort.jobs import Job, Result, Sums
from fedtune.cohort.plan import ClientWork
from fedtune.errors import ClientFailure
from fedtune.tasks.base import Data, Rows
from fedtune.workers.packing import Flat, pack, shared_by, unpack
from fedtune.workers.pool import Pool
from fedtune.workers.worker import Common, Make

PIECES = 2  # cohorts for each worker, where one for each would be uneven
GAIN = 1.15  # in the time of a round, for which cohorts are made smaller
CHUNKS = 4  # of an evaluation, for each worker


class SpreadEngine(Engine):
    """Deals a round's clients into cohorts as `Engine` does, and the cohorts to workers.

    Which clients are a cohort is a function of their work, the cohort size and the number of
    workers, as settled; how long cohorts take decides only who works on which, and when. This
    process keeps a backend too, for what is not spread.

    Args:
        engine: the same without workers.
        pool: the workers.
        make: loads what they hold.
        named: the data that workers hold, by name.
        lent: whether others use the workers afterwards.
    """

    def __init__(
        self,
        engine: Engine,
        pool: Pool,
        make: Make,
        named: Mapping[str, Data],
        lent: bool = False,
    ) -> None:
        super().__init__(
            engine.backend, engine.setting, engine.resolved, engine.cohort_size, engine.on_resolve
        )
        self.pool, self.make, self.named, self.lent = pool, make, named, lent
        self._sent = 0

    @property
    def lanes(self) -> int:
        """How many cohorts are worked on at a time."""
        return self.pool.count

    def deal(self, works: Sequence[ClientWork], size: int) -> list[list[ClientWork]]:
        """One cohort for each worker at least; more where some are much dearer than others.

        Small cohorts train slower, so they must gain something.
        """
        large, small = (
            cohorts(works, min(size, -(-len(works) // (pieces * self.pool.count))))
            for pieces in (1, PIECES)
        )
        if len(small) == len(large):
            return large
        return small if self._longest(small) * GAIN < self._longest(large) else large

    def _longest(self, dealt: Sequence[list[ClientWork]]) -> float:
        """What the busiest worker has to do, if each takes the dearest cohort that is left."""
        busy = [0.0] * self.pool.count
        for cost in sorted(map(self._cost, dealt), reverse=True):
            busy[busy.index(min(busy))] += cost
        return max(busy)

    def each(
        self, dealt: Sequence[list[ClientWork]], server_round: int, job: Job[Result]
    ) -> dict[int, Result | ClientFailure]:
        """What comes of cohorts, by client."""
        shared = shared_by(dealt)
        common = self._put(shared)
        pieces = [
            (self._cost(cohort), (job, server_round, common, pack(cohort, shared)))
            for cohort in dealt
        ]
        done: dict[int, Result | ClientFailure] = {}
        for _, parcel in self.pool.spread("attempt", pieces):
            if parcel is None:
                raise torch.OutOfMemoryError("in a worker")
            done.update(unpack(parcel, [], self.setting.device))
        return done

    def fitting(self, widest: ClientWork) -> int:
        """The largest cohort of such clients that fits into every worker's memory."""
        return int(min(self.pool.everywhere("fitting", self._put([]), pack(widest))))

    def looks(self, state: Tensors, data: Data, batches: Sequence[Rows]) -> Iterable[Sums]:
        """What `evaluate` adds up, batch by batch; here where it is little, or workers lack it."""
        name = next((name for name, held in self.named.items() if held is data), None)
        if name is None or len(batches) < self.pool.count:
            return super().looks(state, data, batches)
        share = -(-len(batches) // (CHUNKS * self.pool.count))
        chunks = [batches[i : i + share] for i in range(0, len(batches), max(share, 1))]
        shared = list(state.values())
        common, parcel = self._put(shared), pack(state, shared)
        pieces = [(sum(map(len, c)), (name, c, common, parcel)) for c in chunks]
        done = dict(self.pool.spread("looks", pieces))
        return [found for index in range(len(chunks)) for found in done[index]]

    def peaks(self) -> list[int]:
        """Most bytes that each worker held at once."""
        return self.pool.peaks()

    def close(self) -> None:
        """End the workers, unless they are lent."""
        if not self.lent:
            self.pool.close()

    def _put(self, shared: Sequence[Tensor]) -> Any:
        """Send tensors that parcels share; gives what stands for them.

        All work begins with it, so here workers come to hold what is this run's.
        """
        self.pool.holds(self.make)
        self._sent += 1
        return self.pool.put(Common(self._sent, [Flat.of(tensor) for tensor in shared]))

    def _cost(self, cohort: Sequence[ClientWork]) -> float:
        """Examples times length, of all steps of all its clients."""
        widths = self.setting.data.widths
        batches = [batch for work in cohort for step in work.steps for batch in step]
        return float(sum(len(b) * int(widths(b).max()) for b in batches if len(b)))
