"""The weighted mean (McMahan et al., 2017, algorithm 1), and that of unit-norm updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedtune.rules.base import Aggregate, Updates
from fedtune.rules.gram import combination


@dataclass(frozen=True)
class Mean:
    """Σ_k p_k Δ_k with the weights of the round; uniform after pre-aggregation."""

    def __call__(self, updates: Updates) -> Aggregate:
        """The update and the weights."""
        n, over = len(updates), updates.weights
        if updates.mixing is not None:
            over = torch.full((n,), 1.0 / n, dtype=torch.float64) @ updates.mixing
        return Aggregate(combination(over, updates.replies), over)


@dataclass(frozen=True)
class NormalizedMean:
    """The mean of the updates' directions, at their median length: what `flag` is compared with."""

    def __call__(self, updates: Updates) -> Aggregate:
        """Updates of length zero have no direction: they count as zero."""
        norms = updates.norms
        scale = torch.where(norms > 0, norms.median() / norms, 0.0)
        return updates.combined(scale / len(updates))
