"""The weighted mean (McMahan et al., 2017, algorithm 1)."""

from __future__ import annotations

from torch import Tensor


def mean(updates: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_k p_k Δ_k.

    Args:
        updates: (n, d).
        weights: (n,), summing to 1.

    Returns:
        The update, (d,), and the coefficients, (n,).
    """
    return weights.to(updates.dtype) @ updates, weights
