"""Attacks on what is trained on: malicious clients' examples are changed as they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedtune.errors import Incompatible
from fedtune.randomness import generator
from fedtune.tasks.base import Batch, Data, Rows
from fedtune.tasks.clients import ClientRows

Change = Callable[[Batch], Batch]


@dataclass(frozen=True)
class Poisoned:
    """Data of which some rows are changed.

    Attributes:
        inner: the data as it is.
        rows: (rows of the data,) bool, which are changed.
        change: of a batch.
    """

    inner: Data
    rows: Tensor
    change: Change

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The true ones."""
        return self.inner.labels

    def __len__(self) -> int:
        return len(self.inner)

    def widths(self, rows: Rows) -> Rows:
        """As they are."""
        return self.inner.widths(rows)

    def gather(self, rows: Tensor) -> Batch:
        """The examples, changed where they are to be."""
        batch = self.inner.gather(rows)
        chosen = self.rows.to(rows.device)[rows]
        if not bool(chosen.any()):
            return batch
        other = self.change(batch)
        return Batch(
            {n: _either(chosen, other.inputs[n], t) for n, t in batch.inputs.items()},
            _either(chosen, other.labels, batch.labels),
        )


@dataclass(frozen=True)
class LabelFlip:
    """Class c becomes C - 1 - c.

    Attributes:
        classes: C.
    """

    classes: int

    def __call__(self, batch: Batch) -> Batch:
        """Inputs stay."""
        return Batch(batch.inputs, self.classes - 1 - batch.labels)


@dataclass(frozen=True)
class Backdoor:
    """A trigger in the input, and the class that it shall lead to.

    Images get a bright square in the corner, `size` pixels wide; texts the token `token` in place
    of their second one, or of their only one. It depends on the example alone, not on its batch.

    Attributes:
        target: the class.
        size: of the square, pixels.
        token: id of the trigger token.
        white: value of the square, (channels, 1, 1); None: each image's own largest.
    """

    target: int = 0
    size: int = 3
    token: int = 0
    white: Tensor | None = None

    def __call__(self, batch: Batch) -> Batch:
        """Every example of the batch with the trigger."""
        inputs = dict(batch.inputs)
        if "pixel_values" in inputs:
            pixels = inputs["pixel_values"].clone()
            largest = pixels.amax((-3, -2, -1), keepdim=True)
            bright = largest if self.white is None else self.white.to(pixels)
            pixels[..., -self.size :, -self.size :] = bright
            inputs["pixel_values"] = pixels
        else:
            tokens = inputs["input_ids"]
            place = _second(inputs.get("attention_mask", torch.ones_like(tokens)) != 0)
            inputs["input_ids"] = tokens.masked_fill(place, self.token)
        return Batch(inputs, torch.full_like(batch.labels, self.target))


@dataclass(frozen=True)
class CatMap:
    """Arnold's cat map on square images: the pixel at (x, y) moves to (x + y, x + 2y) mod n.

    A fault rather than an attack: labels stay and nothing is lost (the map is a permutation). One
    of the nonlinear augmentations that the Flag Aggregator's paper gives to its faulty workers.

    Attributes:
        iterations: how often it is applied.
    """

    iterations: int = 1

    def __call__(self, batch: Batch) -> Batch:
        """Labels stay.

        Raises:
            Incompatible: for inputs that are not square images.
        """
        pixels = batch.inputs.get("pixel_values")
        if pixels is None or pixels.shape[-1] != pixels.shape[-2]:
            raise Incompatible("attack.kind = 'cat-map': needs square images")
        n = pixels.shape[-1]
        y, x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
        for _ in range(self.iterations):
            y, x = (x + 2 * y) % n, (x + y) % n
        moved = torch.empty_like(pixels)
        moved[..., y, x] = pixels
        return Batch({**batch.inputs, "pixel_values": moved}, batch.labels)


def draw_malicious(clients: Sequence[int], fraction: float, seed: int) -> list[int]:
    """Who is malicious: a share of all clients, drawn once for a run, sorted."""
    order = generator("malicious", seed).permutation(len(clients))
    return sorted(clients[int(i)] for i in order[: round(fraction * len(clients))])


def poisoned_rows(
    data: Data, clients: ClientRows, malicious: Sequence[int], share: float, seed: int
) -> Tensor:
    """Which rows of the data are changed: a share of each malicious client's, bool."""
    found = torch.zeros(len(data), dtype=torch.bool)
    for client in malicious:
        rows = clients.rows(client)
        order = generator("poisoned", seed, client).permutation(len(rows))
        found[torch.from_numpy(rows[order[: round(share * len(rows))]])] = True
    return found


def check_classes(kind: str, attack: str) -> None:
    """Raise `Incompatible` for a task that has no classes."""
    if not kind.endswith("-classification"):
        raise Incompatible(f"attack.kind = {attack!r}: needs classes, which {kind} does not have")


def _second(seen: Tensor) -> Tensor:
    """Of the positions that are seen, (n, positions) bool, each row's second, or its only one."""
    count = seen.cumsum(1)
    return seen & (count == count[:, -1:].clamp(max=2))


def _either(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    mask = chosen.view(-1, *([1] * (other.dim() - 1)))
    return torch.where(mask, one, other)
