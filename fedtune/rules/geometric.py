"""Geometric median by Weiszfeld's iteration (RFA; Pillutla et al., 2022), in Gram form."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedtune.rules.base import Aggregate, Updates

ROUNDING = 1e-7


@dataclass(frozen=True)
class GeometricMedian:
    """The point with the least sum of distances to the updates.

    z = Σ c_k x_k with c_k ∝ 1 / max(ν, ‖x_k - z‖), iterated until z moves less than `tolerance`
    of the median distance; distances come from the Gram matrix, so an iteration costs n².

    Attributes:
        smoothing: ν, as a share of the median distance from the mean.
        tolerance: of convergence.
        iterations: at most so many.
    """

    smoothing: float = 1e-6
    tolerance: float = 1e-9
    iterations: int = 1000

    def __call__(self, updates: Updates) -> Aggregate:
        """Coefficients are the weights of the last iteration."""
        gram, n = updates.gram, len(updates)
        weights = torch.full((n,), 1.0 / n, dtype=torch.float64)
        norms = gram.diagonal()
        scale, steps = None, 0
        while steps < self.iterations:
            steps += 1
            squared = norms - 2.0 * (gram @ weights) + weights @ gram @ weights
            distances = squared.clamp_min(0.0).sqrt()
            scale = float(distances.median()) if scale is None else scale
            if scale <= ROUNDING * float(norms.max().sqrt()):
                break
            inverse = 1.0 / distances.clamp_min(self.smoothing * scale)
            moved = inverse / inverse.sum() - weights
            weights = weights + moved
            if float((moved @ gram @ moved).clamp_min(0.0).sqrt()) <= self.tolerance * scale:
                break
        found = updates.combined(weights)
        return Aggregate(found.update, found.coefficients, {"iterations": float(steps)})
