"""FLTrust (Cao et al., 2021): the server's own update says whom to trust."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedtune.errors import RunError
from fedtune.rules.base import Aggregate, Updates, column_blocks


@dataclass(frozen=True)
class FLTrust:
    """Σ_k t_k (‖g0‖/‖x_k‖) x_k / Σ_k t_k with t_k = ReLU(cos(x_k, g0)), g0 the server's update."""

    def __call__(self, updates: Updates) -> Aggregate:
        """Zero where nobody is trusted."""
        if updates.trusted is None:
            raise RunError("rule 'fltrust': the round has no update from the server's own data")
        root = updates.trusted.double().cpu()
        norms, length = updates.gram.diagonal().sqrt(), float(root.norm())
        inner = torch.zeros(len(updates), dtype=torch.float64)
        start = 0
        for block in column_blocks(updates.rows):
            part = root[start : start + block.shape[1]].to(block.device)
            inner += (block.double() @ part).cpu()
            start += block.shape[1]
        cosine = torch.where(norms > 0, inner / (norms * max(length, 1e-300)), 0.0)
        trust = cosine.clamp_min(0.0)
        scale = torch.where(norms > 0, length / norms, 0.0)
        return updates.combined(trust * scale / trust.sum().clamp_min(1e-300))
