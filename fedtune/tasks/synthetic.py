"""`builtin:synthetic`: images made when they are asked for, for any number of clients.

For measuring scale only; a figure on it says nothing about a method.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedtune.randomness import key_of, mix, uniform
from fedtune.tasks.base import Batch, Rows

CLASSES = 10
KEPT_PIXELS, CHUNK = 1 << 26, 1024


class SyntheticImages:
    """Row i is class prototype plus noise, both a function of (seed, i).

    Args:
        rows: how many there are.
        shape: (channels, height, width).
        seed: of the data.
        device: where examples are made.
        dtype: of the images.
    """

    def __init__(
        self,
        rows: int,
        shape: tuple[int, int, int],
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.count, self.shape, self.dtype = rows, shape, dtype
        self.key = key_of("synthetic", seed)
        prototypes = uniform(key_of("prototypes", seed), (CLASSES, *shape)) * 2.0 - 1.0
        self.prototypes = prototypes.to(device)
        self.pixel = torch.arange(1, prototypes[0].numel() + 1, device=device)
        self._made = self._all() if rows * prototypes[0].numel() <= KEPT_PIXELS else None

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Not known without making the examples."""
        return None

    @property
    def white(self) -> Tensor:
        """A bound: half of a prototype, at most 1, and noise, at most 1."""
        return torch.full((self.shape[0], 1, 1), 1.5, dtype=self.dtype)

    def __len__(self) -> int:
        return self.count

    def widths(self, rows: Rows) -> Rows:
        """All images are of one size."""
        return np.ones(len(rows), dtype=np.int64)

    def gather(self, rows: Tensor) -> Batch:
        """The examples of the rows, made now unless all are few enough to be kept."""
        if self._made is None:
            return self._make(rows)
        pixels, labels = self._made
        return Batch({"pixel_values": pixels.index_select(0, rows)}, labels.index_select(0, rows))

    def _all(self) -> tuple[Tensor, Tensor]:
        parts = [self._make(rows) for rows in torch.arange(self.count).to(self.pixel).split(CHUNK)]
        pixels = torch.cat([part.inputs["pixel_values"] for part in parts])
        return pixels, torch.cat([part.labels for part in parts])

    def _make(self, rows: Tensor) -> Batch:
        keys = mix(rows + self.key)
        labels = (keys & 0x7FFFFFFF) % CLASSES
        bits = mix(keys[:, None] ^ mix(self.pixel)[None, :]) & 0xFFFF
        noise = bits.to(torch.float32).view(-1, *self.shape) * 2.0**-15 - 1.0
        pixels = 0.5 * self.prototypes.index_select(0, labels) + noise
        return Batch({"pixel_values": pixels.to(self.dtype)}, labels)
