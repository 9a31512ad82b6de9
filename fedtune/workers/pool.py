"""A pool of Ray actors that share out work, longest first, and replaces those that die."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from fedtune.errors import RunError, ScenarioError, first_line
from fedtune.version import versions
from fedtune.workers.cluster import connect, disconnect, is_connected, room
from fedtune.workers.worker import Holding, Worker

LIVES = 3  # of a piece of work: workers that may die over it


class Pool:
    """Workers on Ray, on this machine or on a cluster that is up.

    Ray is connected to when the first piece of work comes.

    Args:
        make: loads what a worker holds; runs in each of them.
        count: number of workers.
        cores: of each worker.
        cards: GPUs of each worker.
        address: of a cluster; None: this machine.
    """

    def __init__(
        self,
        make: Callable[[], Holding],
        count: int,
        cores: int,
        cards: int,
        address: str | None = None,
    ) -> None:
        self.make, self.count, self.cores, self.cards = make, count, cores, cards
        self.address = address
        self.deaths = 0
        self._actors: list[Any] = []

    def put(self, thing: Any) -> Any:
        """Send something to all workers of a machine at once; gives what stands for it."""
        import ray

        self._start()
        return ray.put(thing)

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker."""
        import ray

        self._start()
        return list(ray.get([getattr(actor, method).remote(*arguments) for actor in self._actors]))

    def spread(self, method: str, pieces: Sequence[tuple[float, tuple[Any, ...]]]) -> list[Any]:
        """Call a method once for each piece of work, by whichever worker is free.

        Args:
            pieces: the cost of each, and its arguments; the dearest are begun first.

        Returns:
            What each piece gave, in their order. A worker that dies is replaced, and its piece done
            again.

        Raises:
            RunError: if a piece fails, or workers keep dying over it.
        """
        import ray

        self._start()
        waiting = deque(sorted(range(len(pieces)), key=lambda i: (-pieces[i][0], i)))
        free = deque(range(self.count))
        busy: dict[Any, tuple[int, int]] = {}
        done: list[Any] = [None] * len(pieces)
        lost: Counter[int] = Counter()
        while waiting or busy:
            while waiting and free:
                piece, index = waiting.popleft(), free.popleft()
                told = getattr(self._actors[index], method).remote(*pieces[piece][1])
                busy[told] = index, piece
            ready, _ = ray.wait(list(busy), num_returns=1)
            index, piece = busy.pop(ready[0])
            try:
                done[piece] = ray.get(ready[0])
            except ray.exceptions.RayActorError as error:
                lost[piece] += 1
                if lost[piece] == LIVES:
                    raise RunError(
                        f"{LIVES} workers died, one after another, over the same clients: "
                        f"{first_line(error)}"
                    ) from error
                self.deaths += 1
                self._actors[index] = self._actor()
                waiting.appendleft(piece)
            except ray.exceptions.RayTaskError as error:
                raise RunError(f"a worker failed: {_cause(error)}") from error
            free.append(index)
        return done

    def processes(self) -> list[int]:
        """Process ids of the workers."""
        return self.everywhere("process")

    def close(self) -> None:
        """End the workers and leave Ray."""
        if not self._actors:
            return
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        self._leave()

    def _leave(self) -> None:
        """Leave Ray, unless it was there before."""
        if self._joined:
            disconnect()

    def _start(self) -> None:
        if self._actors:
            return
        self._joined = self.address is not None or not is_connected()
        machines = connect(self.address, self.count * self.cores)
        if room(machines, self.cores, self.cards) < self.count:
            self._leave()
            raise ScenarioError(
                f"engine.workers = {self.count}: of {self.cores} cores and {self.cards} GPUs each, "
                f"Ray has room for {room(machines, self.cores, self.cards)}"
            )
        import ray

        self._made = ray.put(self.make)
        self._actors = [self._actor() for _ in range(self.count)]
        try:
            found = self.everywhere("hello")
        except ray.exceptions.RayError as error:
            self.close()
            raise RunError(f"a worker did not start: {_cause(error)}") from error
        mine = versions()
        for theirs in found:
            if other := {name: v for name, v in theirs.items() if mine.get(name) != v}:
                self.close()
                raise RunError(f"a worker has other versions than this process: {other}")

    def _actor(self) -> Any:
        import ray

        kind = ray.remote(num_cpus=self.cores, num_gpus=self.cards)(Worker)
        return kind.remote(self._made)


def _cause(error: Exception) -> str:
    """What went wrong in a worker: the last line of its traceback."""
    return str(error).strip().rsplit("\n", 1)[-1]
