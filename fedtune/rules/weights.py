"""Weight policies: how much each reply counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

POLICIES = ("uniform", "reported", "capped")


def policy_weights(policy: str, examples: Sequence[float], most: float) -> Tensor:
    """The weights p_k of the replies, ∝ `policy_counts`, float64 on the CPU, (n,), with sum 1."""
    counts = policy_counts(policy, examples, most)
    return counts / counts.sum()


def policy_counts(policy: str, examples: Sequence[float], most: float) -> Tensor:
    """What each client counts, float64 on the CPU, (n,), whoever else takes part.

    Args:
        policy: `uniform` 1; `reported` the number of examples that a client reports; `capped` that
            number, at most `most`.
        examples: reported numbers, positive.
        most: the cap.
    """
    counts = torch.tensor(examples, dtype=torch.float64)
    if policy == "uniform":
        return torch.ones_like(counts)
    return counts.clamp(max=most) if policy == "capped" else counts
