"""Who takes part in a round: a pure function of (seed, round) and the logical client ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedtune.randomness import generator

LOOKED_AT = 100


@dataclass(frozen=True)
class Participation:
    """A process that draws a round's participants.

    Attributes:
        kind: `fraction` draws that share of the clients without replacement (at least one);
            `bernoulli` lets each take part with its own probability, so that a round may be empty;
            `groups` the same, with one probability a group; `clock` lets each take part as often
            as its speed allows; `trace` says who does.
        value: the share, or one probability for all, or one for each client id.
        seed: of the run.
        groups: (share of the clients, probability) of each group, for `groups`; who is in which is
            drawn once from the seed.
        spread: of the clients' speeds, for `clock`: a client is done every exp(spread·|z|) rounds,
            z normal, drawn once from the seed.
        trace: ids by round, for `trace`; after its last round it begins anew.
    """

    kind: str = "fraction"
    value: float | Sequence[float] = 1.0
    seed: int = 0
    groups: Sequence[tuple[float, float]] = ()
    spread: float = 1.0
    trace: Mapping[int, Sequence[int]] | None = None

    def draw(self, clients: Sequence[int], server_round: int) -> list[int]:
        """The participants of a round, sorted.

        Args:
            clients: logical ids of the clients that can be drawn, sorted.
        """
        if self.kind == "trace":
            assert self.trace is not None
            present = set(self.trace.get((server_round - 1) % max(self.trace) + 1, ()))
            return [client for client in clients if client in present]
        if self.kind == "clock":
            return self._done(clients, server_round)
        random = generator("participation", self.seed, server_round)
        if self.kind == "fraction":
            assert isinstance(self.value, int | float)
            size = min(len(clients), max(1, round(self.value * len(clients))))
            if size == len(clients):
                return list(clients)
            picked = random.choice(len(clients), size, replace=False, shuffle=False)
            return sorted(clients[int(i)] for i in picked)
        taken = np.flatnonzero(random.random(len(clients)) < self.probabilities(clients))
        return [clients[int(i)] for i in taken]

    def probabilities(self, clients: Sequence[int]) -> NDArray[np.float64]:
        """Each client's chance to take part in a round, for `bernoulli` and `groups`, (n,)."""
        if self.kind == "groups":
            order = generator("groups", self.seed).permutation(len(clients))
            ends = np.cumsum([share for share, _ in self.groups]) * len(clients)
            chances = np.asarray([chance for _, chance in self.groups], dtype=np.float64)
            place = np.searchsorted(np.round(ends), order, side="right")
            return chances[np.minimum(place, len(chances) - 1)]
        chance = np.asarray(self.value, dtype=np.float64)
        return chance[np.asarray(clients)] if chance.ndim else np.full(len(clients), chance)

    def expected(self, clients: Sequence[int]) -> float:
        """How many take part in a round on average; clocks and traces by their first rounds."""
        if self.kind == "fraction":
            return float(len(self.draw(clients, 1)))
        if self.kind in ("bernoulli", "groups"):
            return float(self.probabilities(clients).sum())
        return float(np.mean([len(self.draw(clients, r)) for r in range(1, LOOKED_AT + 1)]))

    def _done(self, clients: Sequence[int], server_round: int) -> list[int]:
        random = generator("clock", self.seed)
        count = max(clients, default=-1) + 1
        periods = np.exp(self.spread * np.abs(random.normal(size=count)))
        phases = random.random(count) * periods
        before, after = ((server_round - k + phases) // periods for k in (1, 0))
        return [client for client in clients if after[client] > before[client]]
