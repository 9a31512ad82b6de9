"""DP-SGD steps of a cohort: every client with its own noise, rate and divisor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedtune.cohort.per_example import Samples, clipped_sum, norms
from fedtune.privacy.example import ExampleNoise, clip_factors
from fedtune.tasks.base import Objective


class PrivateSteps:
    """What the active clients' gradients are protected by.

    Args:
        noises: of each client, in their order.
    """

    def __init__(self, noises: Sequence[ExampleNoise | None]) -> None:
        given = [noise for noise in noises if noise is not None]
        if len(given) < len(noises):
            raise ValueError("a cohort is private as a whole or not at all")
        self.clients = [(noise, noise.stream()) for noise in given]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some clients only."""
        self.clients = [self.clients[i] for i in rows]

    def clipped(self, samples: Mapping[str, Samples], valid: Tensor, owners: Tensor) -> Tensor:
        """Sums of the clients' clipped gradients, (K, P).

        Args:
            samples: of each trained tensor, for V·s examples.
            valid: (V, s), which of them are real.
            owners: (V,), whose each part is.
        """
        found = norms(samples)
        if not bool(found.isfinite().all()):
            samples = {name: one.without(~found.isfinite()) for name, one in samples.items()}
        clips = found.new_tensor([noise.clip for noise, _ in self.clients])[owners].unsqueeze(1)
        factors = torch.where(valid, clip_factors(found.view(valid.shape), clips), 0.0)
        parts = clipped_sum(samples, factors)
        return parts.new_zeros(len(self.clients), parts.shape[1]).index_add_(0, owners, parts)

    def noised(self, total: Tensor) -> Tensor:
        """(Σ clipped + z·C·normal) / expected examples, (K, P)."""
        rows = [
            (row + noise.drawn(stream, row.numel(), row)) / noise.divisor
            for row, (noise, stream) in zip(total, self.clients, strict=True)
        ]
        return torch.stack(rows)


def mean_losses(objective: Objective, logits: Tensor, labels: Tensor) -> Tensor:
    """Each example's mean loss over its own counted units, (n,)."""
    counts = objective.counts(labels).clamp_min(1)
    return objective.losses(logits, labels) / counts
