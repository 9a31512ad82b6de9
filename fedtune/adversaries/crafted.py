"""Attacks on what is sent: from honest updates to malicious ones, in the space that is sent.

Each takes the updates that the attacker knows, (h, d), and what its own client would have sent,
(d,), and gives what the client sends instead. Definitions follow section 6 of the method card.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Knowledge:
    """What the attacker knows in a round.

    Attributes:
        honest: (h, d) updates of honest clients (all, or those that its own clients would have
            sent), at least one.
        clients: that take part, and
        malicious: of them.
        aggregate: the deployed rule, on updates (n, d); for adaptive attacks.
        generator: of the round's random numbers.
    """

    honest: Tensor
    clients: int
    malicious: int
    aggregate: Callable[[Tensor], Tensor]
    generator: torch.Generator


class Attack(Protocol):
    """Makes a malicious update."""

    def __call__(self, known: Knowledge, own: Tensor) -> Tensor:
        """What a client sends, (d,), instead of its own update."""
        ...


@dataclass(frozen=True)
class SignFlip:
    """The client's own update, reversed.

    Attributes:
        factor: times so long.
    """

    factor: float = 1.0

    def __call__(self, known: Knowledge, own: Tensor) -> Tensor:
        """-factor · own."""
        return -self.factor * own


@dataclass(frozen=True)
class Scaling:
    """The client's own update, enlarged (model replacement).

    Attributes:
        factor: how often.
    """

    factor: float = 10.0

    def __call__(self, known: Knowledge, own: Tensor) -> Tensor:
        """factor · own."""
        return self.factor * own


@dataclass(frozen=True)
class Gaussian:
    """Noise, many times as long as honest updates.

    Attributes:
        sigma: its standard deviation, in root mean squares of the honest updates' entries.
    """

    sigma: float = 10.0

    def __call__(self, known: Knowledge, own: Tensor) -> Tensor:
        """Drawn anew for each client and round."""
        scale = self.sigma * float(known.honest.double().square().mean().sqrt())
        noise = torch.randn(own.shape, generator=known.generator, dtype=torch.float64)
        return (scale * noise).to(own)


@dataclass(frozen=True)
class Uniform:
    """Uniform numbers between nothing and a size, as where memory or a link fails.

    All entries are of one sign, as in the faults of the Flag Aggregator's program.

    Attributes:
        size: the largest, in root mean squares of the honest updates' entries.
    """

    size: float = 10.0

    def __call__(self, known: Knowledge, own: Tensor) -> Tensor:
        """Drawn anew for each client and round."""
        scale = self.size * float(known.honest.double().square().mean().sqrt())
        drawn = torch.rand(own.shape, generator=known.generator, dtype=torch.float64)
        return (scale * drawn).to(own)


@dataclass(frozen=True)
class NonFinite:
    """NaN and infinities: what a check of replies must stop."""

    def __call__(self, known: Knowledge, own: Tensor) -> Tensor:
        """One NaN, one of each infinity, the rest as it was."""
        sent = own.clone()
        sent[: min(3, len(sent))] = torch.tensor([math.nan, math.inf, -math.inf])[: len(sent)].to(
            own
        )
        return sent
