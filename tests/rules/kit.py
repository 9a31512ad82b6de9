"""Updates to aggregate, and the robustness inequality by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from fedtune.rules.base import Updates


def updates(rows, **changes) -> Updates:
    """Rows as a round's updates with uniform weights."""
    matrix = torch.as_tensor(np.asarray(rows, dtype=np.float64))
    weights = torch.full((len(matrix),), 1.0 / len(matrix), dtype=torch.float64)
    return Updates(matrix, weights, range(len(matrix)), **changes)


def worst_ratio(rows: np.ndarray, aggregate: np.ndarray, f: int) -> float:
    """max over subsets T of n - f rows of ‖F - mean_T‖² / mean_T ‖x - mean_T‖²."""
    worst = 0.0
    for subset in itertools.combinations(range(len(rows)), len(rows) - f):
        honest = rows[list(subset)]
        center = honest.mean(0)
        spread = ((honest - center) ** 2).sum(1).mean()
        error = ((aggregate - center) ** 2).sum()
        if error > 1e-18:
            worst = max(worst, error / spread if spread > 0 else np.inf)
    return worst
