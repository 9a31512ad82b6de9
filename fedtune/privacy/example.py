"""Example-level DP-SGD (Abadi et al., CCS 2016): what one client's steps are protected by.

Each example's gradient over all trained tensors together is scaled to norm C at most, their sum
gets noise of standard deviation z·C and is divided by the expected number of examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedtune.privacy.streams import Streams, normal, poisson
from fedtune.tasks.base import Rows

EPS = 1e-6  # as Opacus has it, so that both are equal


@dataclass(frozen=True)
class ExampleNoise:
    """One client's mechanism in one round.

    Attributes:
        clip: C, largest norm of an example's gradient.
        multiplier: z.
        rate: q, chance of an example to be in a step.
        divisor: expected examples of a step.
        streams: where the noise is drawn, and
        place: (round, client, ...) that it is for.
    """

    clip: float
    multiplier: float
    rate: float
    divisor: float
    streams: Streams
    place: tuple[int, ...]

    def batches(self, examples: int, steps: int) -> list[Rows]:
        """Which of so many examples each step takes: Poisson samples, some of them empty."""
        stream = self.streams.stream("batches", *self.place)
        return [poisson(stream, examples, self.rate) for _ in range(steps)]

    def stream(self) -> np.random.Generator:
        """The noise of a round's steps, from the first on."""
        return self.streams.stream("noise", *self.place)

    def drawn(self, stream: np.random.Generator, size: int, like: Tensor) -> Tensor:
        """The noise of a step, (size,); exact zeros without noise."""
        if self.multiplier == 0.0:
            return torch.zeros(size, dtype=like.dtype, device=like.device)
        return normal(stream, size, like).mul_(self.multiplier * self.clip)


def clip_factors(norms: Tensor, clip: float | Tensor) -> Tensor:
    """The scale of each example: min(1, C / norm), and 0 where the gradient is not finite."""
    factors = (clip / (norms + EPS)).clamp_(max=1.0)
    return torch.where(norms.isfinite(), factors, 0.0)
