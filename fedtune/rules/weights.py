"""Weight policies: how much each reply counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

POLICIES = ("uniform", "reported", "capped")


def policy_weights(policy: str, examples: Sequence[float], most: float) -> Tensor:
    """The weights p_k of the replies, float64 on the CPU, (n,), summing to 1.

    Args:
        policy: `uniform` 1/n; `reported` ∝ the number of examples a client reports; `capped`
            ∝ that number, at most `most`.
        examples: reported numbers, positive.
        most: the cap.
    """
    counts = torch.tensor(examples, dtype=torch.float64)
    if policy == "uniform":
        counts = torch.ones_like(counts)
    elif policy == "capped":
        counts = counts.clamp(max=most)
    return counts / counts.sum()
