"""A pool of Ray actors that share out work, longest first, and replaces those that die."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fedtune.errors import RunError, ScenarioError, first_line
from fedtune.version import versions
from fedtune.workers.cluster import connect, disconnect, is_connected, room
from fedtune.workers.worker import Make, Worker

LIVES = 3  # of a piece of work: workers that may die over it
START = 900.0  # seconds until a worker must be up


class Pool:
    """Workers on Ray, on this machine or on a cluster that is up.

    Ray is connected to when the first piece of work comes. Several runs may use a pool, one after
    another.

    Args:
        count: number of workers.
        cores: of each worker.
        cards: GPUs of each worker.
        address: of a cluster; None: this machine.
    """

    def __init__(
        self,
        count: int,
        cores: int,
        cards: int,
        address: str | None = None,
    ) -> None:
        self.count, self.cores, self.cards, self.address = count, cores, cards, address
        self.deaths = 0
        self._make: Make | None = None
        self._made: Any = None
        self._actors: list[Any] = []
        self._coming: dict[Any, int] = {}
        self._stillborn = 0

    def holds(self, make: Make) -> None:
        """Settle what workers hold; those that are up load it before the next piece of work.

        Args:
            make: loads it; runs in each of them.
        """
        if make is self._make:
            return
        self._make, self._made = make, None
        self.deaths = self._stillborn = 0

    def put(self, thing: Any) -> Any:
        """Send something to all workers of a machine at once; gives what stands for it."""
        import ray

        self._start()
        return ray.put(thing)

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker that is up.

        Raises:
            RunError: if one fails.
        """
        import ray

        self._start()
        coming = self._coming.values()
        up = [actor for index, actor in enumerate(self._actors) if index not in coming]
        told = [getattr(actor, method).remote(*arguments) for actor in up]
        try:
            return list(ray.get(told, timeout=START))
        except ray.exceptions.RayError as error:
            raise RunError(f"a worker failed: {_cause(error)}") from error

    def spread(
        self, method: str, pieces: Sequence[tuple[float, tuple[Any, ...]]]
    ) -> Iterator[tuple[int, Any]]:
        """Call a method once for each piece of work, by whichever worker is free.

        Args:
            pieces: the cost of each, and its arguments; the dearest are begun first.

        Yields:
            The number of a piece and what it gave, as they end. A worker that dies is replaced, and
            its piece done again.

        Raises:
            RunError: if a piece fails, or workers keep dying over it.
        """
        import ray

        self._start()
        waiting = deque(sorted(range(len(pieces)), key=lambda i: (-pieces[i][0], i)))
        free = deque(i for i in range(self.count) if i not in self._coming.values())
        busy: dict[Any, tuple[int, int]] = {}
        lost: Counter[int] = Counter()
        try:
            while waiting or busy:
                while waiting and free:
                    piece, index = waiting.popleft(), free.popleft()
                    told = getattr(self._actors[index], method).remote(*pieces[piece][1])
                    busy[told] = index, piece
                one = self._ended(busy)
                if one in self._coming:
                    free.extend(self._arrived(one))
                    continue
                index, piece = busy.pop(one)
                try:
                    found = ray.get(one)
                except ray.exceptions.RayTaskError as error:
                    raise RunError(f"a worker failed: {_cause(error)}") from error
                except ray.exceptions.RayError as error:  # the worker, its machine or its memory
                    lost[piece] += 1
                    if lost[piece] == LIVES:
                        raise RunError(
                            f"{LIVES} workers died, one after another, over the same clients: "
                            f"{first_line(error)}"
                        ) from error
                    self._replace(index)
                    waiting.appendleft(piece)
                    continue
                free.append(index)
                yield piece, found
        except GeneratorExit:  # whoever asked has seen enough: what was begun ends first
            ray.wait(list(busy), num_returns=len(busy)) if busy else None
            raise
        except Exception:  # others still work on what nobody wants any more
            self.close()
            raise

    def _ended(self, busy: Mapping[Any, Any]) -> Any:
        """What ended first: a piece of work, or the start of a worker."""
        import ray

        wait = [*busy, *self._coming]
        ready, _ = ray.wait(wait, num_returns=1, timeout=None if busy else START)
        if not ready:
            raise RunError(f"no worker came up within {START:.0f} s: {self._needs()}")
        return ready[0]

    def _replace(self, index: int) -> None:
        """Start a worker in place of one that died; it takes work once it is up."""
        import ray

        self.deaths += 1
        ray.kill(self._actors[index])
        self._actors[index] = self._actor()
        self._coming[self._actors[index].hello.remote()] = index

    def _arrived(self, one: Any) -> list[int]:
        """The worker that is up now; none if it died on the way, and another one starts."""
        import ray

        index = self._coming.pop(one)
        try:
            ray.get(one)
        except ray.exceptions.RayError as error:
            self._stillborn += 1
            if self._stillborn == LIVES:
                raise RunError(f"workers do not start any more: {_cause(error)}") from error
            self._replace(index)
            return []
        self._stillborn = 0
        return [index]

    def _needs(self) -> str:
        return f"each needs {self.cores} cores and {self.cards} GPUs"

    def peaks(self) -> list[int]:
        """Most bytes that each worker held at once, if they still live."""
        try:
            return self.everywhere("peak") if self._actors else []
        except RunError:
            return []

    def close(self) -> None:
        """End the workers and leave Ray."""
        if self._actors:
            import ray

            for actor in self._actors:
                with suppress(Exception):  # it may be gone, and its cluster too
                    ray.kill(actor)
            self._actors, self._coming = [], {}
            self._leave()
        elif self.address is not None and is_connected():
            disconnect()

    def _leave(self) -> None:
        """Leave Ray, unless it was there before."""
        if self._joined:
            disconnect()

    def _start(self) -> None:
        """See to it that workers are up, and hold what they should."""
        if self._actors and self._made is None:
            self._tell()
        if not self._actors:
            self._hire()

    def _tell(self) -> None:
        """Have all workers hold something else; those that are coming do once they are up."""
        import ray

        try:
            self._made = ray.put(self._make)
            told = [actor.hold.remote(self._made) for actor in self._actors]
            self._coming = {told[index]: index for index in self._coming.values()}
            ray.get([one for one in told if one not in self._coming], timeout=START)
        except ray.exceptions.RayTaskError as error:
            self.close()
            raise RunError(f"a worker failed: {_cause(error)}") from error
        except (ray.exceptions.RayError, ConnectionError):  # lost since it was last used
            self.close()

    def _hire(self) -> None:
        self._joined = self.address is not None or not is_connected()
        machines = connect(self.address, self.count * self.cores)
        if room(machines, self.cores, self.cards) < self.count:
            self._leave()
            raise ScenarioError(
                f"engine.workers = {self.count}: of {self.cores} cores and {self.cards} GPUs each, "
                f"Ray has room for {room(machines, self.cores, self.cards)}"
            )
        import ray

        self._made = ray.put(self._make)
        self._actors = [self._actor() for _ in range(self.count)]
        try:
            found = self.everywhere("hello")
        except RunError:
            self.close()
            raise
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
