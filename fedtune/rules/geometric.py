"""Geometric median by Weiszfeld's iteration (RFA; Pillutla et al., 2022), in Gram form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedtune.rules.base import Aggregate, Updates
from fedtune.rules.gram import gram_about

ROUNDING = 1e-8  # the root of float64's: what distances from a Gram matrix are exact to
AT_A_ROW, TIE, MAX_SCALES = 1e-3, 1 + 1e-9, 16


@dataclass(frozen=True)
class GeometricMedian:
    """The point with the least sum of distances to the updates.

    z = Σ c_k x_k with c_k ∝ 1 / max(ν, ‖x_k - z‖), iterated until z moves less than `tolerance` of
    the scale; distances come from the Gram matrix, so an iteration costs n². Start and scale are
    of the majority nearest to the update that is nearest to all: fewer than half of the updates,
    wherever they are, set neither. Where z comes next to an update, either that is the median (the
    others pull at it with no more than its own weight; Vardi and Zhang, 2000), or the iteration
    goes on at the scale of their distance.

    Attributes:
        smoothing: ν, as a share of the scale, which begins as how far that update is from the
            farthest of the ⌊n/2⌋ nearest to it.
        tolerance: of convergence.
        iterations: at most so many.
    """

    smoothing: float = 1e-6
    tolerance: float = 1e-9
    iterations: int = 1000

    def __call__(self, updates: Updates) -> Aggregate:
        """Coefficients are the weights of the last iteration."""
        gram, left = updates.centred, self.iterations
        weights, scale = _start(updates.distances.sqrt())
        for _ in range(MAX_SCALES if scale > 0.0 else 0):
            weights, left = self._iterated(gram, weights, scale, left)
            apart = _distances(gram, weights)
            row = int(apart.argmin())
            if float(apart[row]) > AT_A_ROW * scale:
                break
            gram = gram_about(updates.blocks, row)
            if _is_median(gram):
                weights = torch.zeros_like(weights).index_fill_(0, torch.tensor(row), 1.0)
                break
            scale = max(float(_distances(gram, weights)[row]), self.smoothing * scale)
        found = updates.combined(weights)
        notes = {"iterations": float(self.iterations - left)}
        return Aggregate(found.update, found.coefficients, notes)

    def _iterated(
        self, gram: Tensor, weights: Tensor, scale: float, left: int
    ) -> tuple[Tensor, int]:
        """Weights that move no more, and how many iterations are left then."""
        least = (ROUNDING * gram.diagonal().sqrt()).clamp_min(self.smoothing * scale)
        moved = scale
        while left > 0 and moved > self.tolerance * scale:
            inverse = 1.0 / torch.maximum(_distances(gram, weights), least)
            step = inverse / inverse.sum() - weights
            weights, left = weights + step, left - 1
            moved = float((step @ gram @ step).clamp_min(0.0).sqrt())
        return weights, left


def _start(apart: Tensor) -> tuple[Tensor, float]:
    """Equal weights of the majority about the medoid (of several, their mean), and its radius."""
    sums = apart.sum(1)
    own = apart[sums <= TIE * sums.min()]
    radii = own.sort(1).values[:, len(apart) // 2]
    inside = (own <= radii[:, None]).double()
    return (inside / inside.sum(1, keepdim=True)).mean(0), float(radii.max())


def _distances(gram: Tensor, weights: Tensor) -> Tensor:
    """Of each row to the weighted sum of all."""
    squared = gram.diagonal() - 2.0 * (gram @ weights) + weights @ gram @ weights
    return squared.clamp_min(0.0).sqrt()


def _is_median(gram: Tensor) -> bool:
    """Whether the row that a Gram matrix is about is the geometric median of all."""
    norms = gram.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1.0 / norms, 0.0)
    return float(inverse @ gram @ inverse) <= TIE * float((norms == 0).sum()) ** 2
