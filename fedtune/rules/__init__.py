"""Aggregation rules: how a matrix of n updates becomes one update.

A rule takes the (n, d) matrix of differences to what was broadcast, in the order of client ids,
and weights p with Σp = 1; it returns the update and, if it is a linear combination, its
coefficients.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fedtune.rules.mean import mean

Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]

RULES: dict[str, Rule] = {"mean": mean}

__all__ = ["RULES", "Rule", "mean"]
