"""Who takes part in a round: a pure function of (seed, round) and the logical client ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedtune.randomness import generator


@dataclass(frozen=True)
class Participation:
    """A process that draws a round's participants.

    Attributes:
        kind: `fraction` draws that share of the clients without replacement (at least one);
            `bernoulli` lets each take part with its own probability, so that a round may be empty.
        value: the share, or one probability for all, or one for each client id.
        seed: of the run.
    """

    kind: str = "fraction"
    value: float | Sequence[float] = 1.0
    seed: int = 0

    def draw(self, clients: Sequence[int], server_round: int) -> list[int]:
        """The participants of a round, sorted.

        Args:
            clients: logical ids of the clients that can be drawn, sorted.
        """
        random = generator("participation", self.seed, server_round)
        if self.kind == "fraction":
            assert isinstance(self.value, int | float)
            size = min(len(clients), max(1, round(self.value * len(clients))))
            if size == len(clients):
                return list(clients)
            picked = random.choice(len(clients), size, replace=False, shuffle=False)
            return sorted(clients[int(i)] for i in picked)
        chance = np.asarray(self.value, dtype=np.float64)
        chances = chance[np.asarray(clients)] if chance.ndim else chance
        taken = np.flatnonzero(random.random(len(clients)) < chances)
        return [clients[int(i)] for i in taken]
