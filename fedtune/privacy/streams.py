"""Where noise and sampling of a private run come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedtune.randomness import generator


@dataclass(frozen=True)
class Streams:
    """Random streams, one for each purpose and place.

    Attributes:
        seed: None, and every stream starts from 128 bits of the operating system's, which nobody
            keeps; or a number, and streams can be had again: for tests, and not private.
    """

    seed: int | None = None

    def stream(self, purpose: str, *place: int) -> np.random.Generator:
        """A stream of its own; the same again only under a seed."""
        if self.seed is None:
            return np.random.Generator(np.random.Philox(np.random.SeedSequence()))
        return generator("private", purpose, self.seed, *place)


def normal(stream: np.random.Generator, size: int, like: Tensor) -> Tensor:
    """Standard normal numbers, (size,), of the dtype and on the device of `like`."""
    if like.device.type == "cpu":
        double = like.dtype == torch.float64
        drawn = stream.standard_normal(size, dtype=np.float64 if double else np.float32)
        return torch.from_numpy(drawn).to(like.dtype)
    there = torch.Generator(like.device).manual_seed(int(stream.integers(2**63)))
    return torch.randn(size, generator=there, device=like.device, dtype=like.dtype)


def poisson(
    stream: np.random.Generator, count: int, rate: float
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which of `count` are in a sample that each enters with a chance of its own; may be none."""
    return np.flatnonzero(stream.random(count) < rate)
