"""Centered clipping (Karimireddy et al., 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from fedtune.rules.base import Aggregate, Updates
from fedtune.rules.gram import combination


class CenteredClipping:
    """v ← v + mean(clip_τ(x_k - v)), from the last round's aggregate.

    Args:
        tau: τ, in the norm of updates; None: the median distance of the updates to v (ours: the
            paper's constant has no meaning for adapters).
        iterations: per round.
    """

    def __init__(self, tau: float | None = None, iterations: int = 1) -> None:
        self.tau, self.iterations = tau, iterations
        self.center: Tensor | None = None

    def __call__(self, updates: Updates) -> Aggregate:
        """Remembers what it gives."""
        rows = updates.rows
        center = self.center
        center = torch.zeros_like(rows[0]) if center is None else center.to(rows)
        part = 0.5 ** len(rows).bit_length()  # it changes no digit, and no sum overflows
        for _ in range(self.iterations):
            apart = rows - center
            norms = apart.double().norm(dim=1)
            tau = float(norms.median()) if self.tau is None else self.tau
            scale = torch.where(norms > tau, tau / norms, 1.0)
            center = center + combination(part * scale.cpu(), apart) / (part * len(rows))
        self.center = center
        return Aggregate(center.clone())

    def state_dict(self) -> dict[str, Tensor]:
        """The last aggregate."""
        return {} if self.center is None else {"center": self.center}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take it back."""
        self.center = state.get("center")
