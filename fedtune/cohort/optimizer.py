"""K independent optimisers as one: element-wise updates on a (K, P) matrix.

The formulas are those of torch.optim's SGD, Adam and AdamW, which a test holds them to; torch's
own take one learning rate for all rows, and clients of unequal length follow schedules of their
own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedtune.scenario.local import LocalSection


class StackedOptimizer:
    """SGD with momentum, Adam or AdamW on the rows of a matrix, all at the same step.

    Args:
        local: the scenario's `[local]`.
        theta: (K, P), what is trained; updated in place.
    """

    def __init__(self, local: LocalSection, theta: Tensor) -> None:
        self.local = local
        self.count = 0
        self.buffers: list[Tensor] = []
        needed = 2 if local.optimizer != "sgd" else int(local.momentum > 0)
        if needed:
            self.buffers = [torch.zeros_like(theta) for _ in range(needed)]

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows only; `rows` holds their indices."""
        self.buffers = [buffer.index_select(0, rows) for buffer in self.buffers]

    @torch.no_grad()
    def step(self, theta: Tensor, grad: Tensor, rate: Tensor) -> None:
        """One update.

        Args:
            theta: (K, P), updated in place.
            grad: (K, P), overwritten.
            rate: (K, 1), learning rates.
        """
        self.count += 1
        if self.local.clip is not None:
            norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
            grad.mul_((self.local.clip / (norm + 1e-6)).clamp_(max=1.0))
        decay = self.local.weight_decay
        if decay and self.local.optimizer == "adamw":
            theta.mul_(1.0 - rate * decay)
        elif decay:
            grad.add_(theta, alpha=decay)
        if self.local.optimizer == "sgd":
            self._sgd(theta, grad, rate)
        else:
            self._adam(theta, grad, rate)

    def _sgd(self, theta: Tensor, grad: Tensor, rate: Tensor) -> None:
        if self.buffers:
            grad = self.buffers[0].mul_(self.local.momentum).add_(grad)
        theta.sub_(grad * rate)

    def _adam(self, theta: Tensor, grad: Tensor, rate: Tensor) -> None:
        first, second = self.buffers
        beta1, beta2 = self.local.betas
        first.lerp_(grad, 1.0 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        root = (1.0 - beta2**self.count) ** 0.5
        denominator = torch.sqrt(second, out=grad).div_(root).add_(self.local.eps)
        step = torch.div(first, denominator, out=denominator)
        theta.sub_(step.mul_(rate / (1.0 - beta1**self.count)))
