"""FLTrust (Cao et al., 2021): the server's own update says whom to trust."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedtune.errors import RunError
from fedtune.rules.base import Aggregate, Updates


@dataclass(frozen=True)
class FLTrust:
    """Σ_k t_k (‖g0‖/‖x_k‖) x_k / Σ_k t_k with t_k = ReLU(cos(x_k, g0)), g0 the server's update."""

    def __call__(self, updates: Updates) -> Aggregate:
        """Zero where nobody is trusted; updates of length zero have no direction to trust."""
        if updates.trusted is None:
            raise RunError("rule 'fltrust': the round has no update from the server's own data")
        root, norms = updates.trusted.double().cpu(), updates.norms
        inner = torch.zeros(len(updates), dtype=torch.float64)
        start = 0
        for block in updates.blocks():
            part = root[start : start + block.shape[1]].to(block.device)
            inner += (block @ part).cpu()
            start += block.shape[1]
        along = torch.where(norms > 0, inner / norms, 0.0).clamp_min(0.0)
        total, scale = float(along.sum()), torch.where(norms > 0, root.norm() / norms, 0.0)
        return updates.combined(along * scale / total if total > 0 else torch.zeros_like(along))
