"""Flag Aggregator (Almasi et al., 2024): projection on the subspace that explains most updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedtune.randomness import aligned, generator
from fedtune.rules.base import Aggregate, Updates

EPSILON, RANK_TOLERANCE = 1e-7, 1e-12


@dataclass(frozen=True)
class Flag:
    """Minimise Σ_i √(1 - v_i) + λ/(n-1) Σ_{i≠j} √(1 - v_ij) over m-dimensional subspaces Y.

    v_i = ‖Yᵀx̂_i‖² of the unit-norm updates x̂, v_ij the same for their unit-norm differences. Solved
    by iteratively reweighted least squares in Gram form: with K = RᵀR, the top m eigenvectors Q of
    R·L·Rᵀ, L = diag(ω) + 2·Laplacian of the pairs. The aggregate is Y·Yᵀ·X̂·1/n, at the median
    length of the updates. Zero updates have no direction and are left out of all that; where they
    are the majority, the aggregate is zero.

    Attributes:
        m: dimension of the subspace; by default (n + 1) / 2, as in the paper's experiments.
        regularization: λ.
        iterations: of the reweighting.
        start: `uniform`: equal weights, which v_i of a random subspace of R^d amount to; `random`:
            the weights of a random subspace of the updates' span, drawn by (seed, round).
    """

    m: int | None = None
    regularization: float = 0.0
    iterations: int = 5
    start: Literal["uniform", "random"] = "uniform"

    def __call__(self, updates: Updates) -> Aggregate:
        """Coefficients may be negative: a subspace does not know a direction from its opposite."""
        norms = updates.norms
        alive = norms > 0
        if not float(norms.median()):
            return updates.combined(torch.zeros(len(updates), dtype=torch.float64))
        scale = torch.where(alive, 1.0 / norms, 0.0)
        unit = updates.gram * scale[:, None] * scale[None, :]
        factor = factor_of(unit)
        count = int(alive.sum())
        m = min(self.m or (count + 1) // 2, len(factor))
        basis, values = self._subspace(factor, unit, m, self._first(factor, unit, m, updates))
        shadow = basis @ (basis.T @ factor.sum(1))
        inside = factor.T @ (shadow / factor.square().sum(1))  # R⁺, the rows of R being orthogonal
        coefficients = inside * scale * float(norms[alive].median()) / int(alive.sum())
        found = updates.combined(coefficients)
        notes = {"objective": values[-1], "objective_first": values[0]}
        return Aggregate(found.update, found.coefficients, notes)

    def _first(
        self, factor: Tensor, unit: Tensor, m: int, updates: Updates
    ) -> tuple[Tensor, Tensor]:
        if self.start == "uniform":
            return unit.new_ones(len(unit)), torch.ones_like(unit)
        draw = generator("flag", updates.seed, updates.server_round)
        basis = torch.linalg.qr(aligned(draw.normal(size=(len(factor), m)))).Q
        return _unexplained(basis, factor, pair_norms(unit))

    def _subspace(
        self, factor: Tensor, unit: Tensor, m: int, left: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, list[float]]:
        apart = pair_norms(unit)
        values = []
        for _ in range(self.iterations):
            weights, pairs = ((one + EPSILON).rsqrt() for one in left)
            lifted = factor @ self._operator(weights, pairs, apart) @ factor.T
            basis = torch.linalg.eigh(lifted).eigenvectors[:, -m:]
            left = _unexplained(basis, factor, apart)
            values.append(self._objective(*left, unit, apart))
        return basis, values

    def _operator(self, weights: Tensor, pairs: Tensor, apart: Tensor) -> Tensor:
        if not self.regularization:
            return torch.diag(weights)
        n = len(weights)
        off = self.regularization * pairs / (max(n - 1, 1) * apart.clamp_min(EPSILON))
        off = torch.where(apart > EPSILON, off, 0.0).fill_diagonal_(0.0)
        return torch.diag(weights) + 2.0 * (torch.diag(off.sum(1)) - off)

    def _objective(self, left: Tensor, pairs: Tensor, unit: Tensor, apart: Tensor) -> float:
        alive = unit.diagonal() > 0
        value = float(left[alive].sqrt().sum())
        if self.regularization:
            counted = pairs[apart > EPSILON].sqrt().sum()
            value += self.regularization / max(len(unit) - 1, 1) * float(counted)
        return value


def _unexplained(basis: Tensor, factor: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
    """1 - v_i and 1 - v_ij for the subspace that the columns of basis span."""
    shadow = basis.T @ factor
    explained = shadow.square().sum(0)
    between = pair_norms(shadow.T @ shadow) / apart.clamp_min(EPSILON)
    return (1.0 - explained).clamp_min(0.0), (1.0 - between).clamp_min(0.0)


def factor_of(gram: Tensor) -> Tensor:
    """R of full row rank with RᵀR = K, (q, n), by eigendecomposition."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > RANK_TOLERANCE * values[-1]
    found: Tensor = values[kept].sqrt()[:, None] * vectors[:, kept].T
    return found


def pair_norms(gram: Tensor) -> Tensor:
    """Squared norms of differences of columns, of their Gram matrix."""
    norms = gram.diagonal()
    return (norms[:, None] + norms[None, :] - 2.0 * gram).clamp_min(0.0)
