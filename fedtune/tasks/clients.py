"""Which rows of the training data each client holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fedtune.randomness import generator
from fedtune.tasks.base import Rows


class ClientRows(Protocol):
    """The rows of every client."""

    def __len__(self) -> int:
        """Number of clients, empty ones included."""
        ...

    def rows(self, client: int) -> Rows:
        """The rows of a client."""
        ...

    @property
    def eligible(self) -> Sequence[int]:
        """Ids of the clients that hold examples, sorted."""
        ...


class DealtRows:
    """Rows dealt by a partitioner.

    Args:
        parts: the rows of each client.
        without: rows that are held out of all of them.
    """

    def __init__(self, parts: Sequence[Rows], without: Rows | None = None) -> None:
        self.parts = list(parts)
        self._rows = self.parts
        if without is not None:
            self._rows = [np.setdiff1d(part, without, assume_unique=True) for part in self.parts]
        self._eligible = [client for client, rows in enumerate(self._rows) if len(rows)]

    def __len__(self) -> int:
        return len(self.parts)

    def rows(self, client: int) -> Rows:
        """The rows of a client."""
        return self._rows[client]

    @property
    def eligible(self) -> Sequence[int]:
        """Ids of the clients that hold examples, sorted."""
        return self._eligible


class EvenRows:
    """Equal runs of consecutive rows, by arithmetic, for any number of clients."""

    def __init__(self, count: int, examples: int) -> None:
        self.count, self.examples = count, examples

    def __len__(self) -> int:
        return self.count

    def rows(self, client: int) -> Rows:
        """The rows of a client."""
        return np.arange(client * self.examples, (client + 1) * self.examples, dtype=np.int64)

    @property
    def eligible(self) -> Sequence[int]:
        """Ids of the clients that hold examples, sorted."""
        return range(self.count)


class AbsentRows:
    """Clients whose examples are not here: a deployed server knows only that there are some."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def rows(self, client: int) -> Rows:
        """None that are known."""
        return np.empty(0, dtype=np.int64)

    @property
    def eligible(self) -> Sequence[int]:
        """All of them."""
        return range(self.count)


def held_of_all(parts: Sequence[Rows], share: float, seed: int) -> Rows:
    """What `hold_out` takes from each client, together, sorted."""
    held = [hold_out(rows, share, seed, k)[1] for k, rows in enumerate(parts) if len(rows)]
    return np.sort(np.concatenate(held))


def hold_out(rows: Rows, share: float, seed: int, client: int) -> tuple[Rows, Rows]:
    """Split a client's rows into those it trains on and those it evaluates on.

    A client with one row trains on it and evaluates on nothing.
    """
    order = rows[generator("holdout", seed, client).permutation(len(rows))]
    held = min(len(rows) - 1, max(1, round(share * len(rows))))
    return np.sort(order[held:]), np.sort(order[:held])
