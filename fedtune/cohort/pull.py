"""A term that a method adds to a client's objective: ⟨c, θ⟩ + (s/2)·‖θ - anchor‖².

FedProx (anchor: what was broadcast), SCAFFOLD (c: the difference of control variates) and ADMM
(both) are of this form; its gradient c + s·(θ - anchor) is added before clipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedtune.adapters.layout import Layout, Tensors


@dataclass(frozen=True)
class Pull:
    """One client's term.

    Attributes:
        linear: c, by the names of the trained tensors; None is 0.
        anchor: where the quadratic term is 0; None is the origin.
        strength: s.
    """

    linear: Tensors | None = None
    anchor: Tensors | None = None
    strength: float = 0.0


class Pulls:
    """The terms of a cohort, one row a client; clients without one have zeros.

    Args:
        pulls: of each client, and
        layout: the order of their tensors.
        like: (K, P), for device and dtype.
    """

    def __init__(self, pulls: Sequence[Pull | None], layout: Layout, like: Tensor) -> None:
        given = [pull or Pull() for pull in pulls]
        self.strength = like.new_tensor([pull.strength for pull in given]).unsqueeze(1)
        self.offset = torch.zeros_like(like, requires_grad=False)
        for row, pull in zip(self.offset, given, strict=True):
            if pull.linear is not None:
                row += layout.flatten(pull.linear).to(row)
            if pull.anchor is not None:
                row -= pull.strength * layout.flatten(pull.anchor).to(row)

    def keep(self, rows: Tensor) -> None:
        """Go on with some clients only; `rows` holds their indices."""
        self.strength = self.strength.index_select(0, rows)
        self.offset = self.offset.index_select(0, rows)

    @torch.no_grad()
    def add(self, grad: Tensor, theta: Tensor) -> None:
        """Add the terms' gradients at theta to grad, both (K, P), in place."""
        grad.add_(self.offset).addcmul_(theta, self.strength)


def pulls_of(pulls: Sequence[Pull | None], layout: Layout, like: Tensor) -> Pulls | None:
    """The terms of a cohort, or None if no client has one."""
    return Pulls(pulls, layout, like) if any(pull is not None for pull in pulls) else None
