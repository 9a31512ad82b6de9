"""Who takes part in a round: a pure function of (seed, round) and the logical client ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
        known: whether the server may look at `probabilities`.
    """

    kind: str = "fraction"
    value: float | Sequence[float] = 1.0
    seed: int = 0
    groups: Sequence[tuple[float, float]] = ()
    spread: float = 1.0
    trace: Mapping[int, Sequence[int]] | None = None
    known: bool = True

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
        """Each client's chance to take part in a round, (n,).

        Raises:
            ValueError: for kinds that have none, `clock` and `trace`.
        """
        if self.kind in ("clock", "trace"):
            raise ValueError(f"participation of kind {self.kind!r} has no probabilities")
        if self.kind == "fraction":
            return np.full(len(clients), len(self.draw(clients, 1)) / max(len(clients), 1))
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


class IntervalEstimate:
    """Each client's probability to take part, from the intervals between its participations.

    p̂ = 1/ω with ω the mean of a client's intervals so far, 1 before its first participation;
    an interval that reaches `cutoff` rounds counts as ended. Of rounds before the current one
    only (FedAU; Wang and Ji, ICLR 2024).

    Args:
        cutoff: K, the longest interval.
    """

    def __init__(self, cutoff: int = 50) -> None:
        self.cutoff = cutoff
        self._open: dict[int, int] = {}
        self._ended: dict[int, tuple[int, int]] = {}

    def probabilities(self, clients: Sequence[int]) -> NDArray[np.float64]:
        """p̂ of clients, (n,)."""
        found = [self._ended.get(client, (1, 1)) for client in clients]
        return np.asarray([count / total for count, total in found], dtype=np.float64)

    def saw(self, clients: Sequence[int], taking_part: Collection[int]) -> None:
        """A round is over.

        Args:
            clients: all that could take part.
            taking_part: those that did.
        """
        present = set(taking_part)
        for client in clients:
            interval = self._open.get(client, 0) + 1
            if client in present or interval == self.cutoff:
                count, total = self._ended.get(client, (0, 0))
                self._ended[client] = (count + 1, total + interval)
                interval = 0
            self._open[client] = interval

    def state_dict(self) -> dict[str, Tensor]:
        """Client ids, open intervals, numbers and sums of ended ones, (clients, 4) int64."""
        rows = [(c, now, *self._ended.get(c, (0, 0))) for c, now in sorted(self._open.items())]
        return {"intervals": torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        rows = state["intervals"].tolist()
        self._open = {client: now for client, now, _, _ in rows}
        self._ended = {client: (count, total) for client, _, count, total in rows if count}
