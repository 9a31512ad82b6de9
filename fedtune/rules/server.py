"""Server optimisers on the aggregated update.

FedAvgM (Hsu et al., 2019) and FedOpt (Reddi et al., 2021).

They treat the update as a step that the server may change, as Flower's FedAvgM, FedAdam, FedYogi
and FedAdagrad do, with Flower's defaults.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class ServerMomentum:
    """v ← β·v + Δ, step η·v.

    Args:
        beta: β.
        lr: η.
    """

    def __init__(self, beta: float = 0.9, lr: float = 1.0) -> None:
        self.beta, self.lr = beta, lr
        self.velocity: Tensor | None = None

    def __call__(self, update: Tensor, server_round: int) -> Tensor:
        """The step for an aggregated update, (d,)."""
        before = torch.zeros_like(update) if self.velocity is None else self.velocity.to(update)
        self.velocity = self.beta * before + update
        return self.lr * self.velocity

    def state_dict(self) -> dict[str, Tensor]:
        """v."""
        return {} if self.velocity is None else {"velocity": self.velocity}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take it back."""
        self.velocity = state.get("velocity")


class ServerAdaptive:
    """m ← β₁·m + (1 - β₁)·Δ, step η·m / (√v + τ), with v as a subclass has it.

    Args:
        lr: η.
        beta_1: β₁.
        beta_2: β₂, of v.
        tau: τ, the degree of adaptivity.
    """

    def __init__(
        self, lr: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3
    ) -> None:
        self.lr, self.beta_1, self.beta_2, self.tau = lr, beta_1, beta_2, tau
        self.mean: Tensor | None = None
        self.square: Tensor | None = None

    def __call__(self, update: Tensor, server_round: int) -> Tensor:
        """The step for an aggregated update, (d,)."""
        mean = torch.zeros_like(update) if self.mean is None else self.mean.to(update)
        square = torch.zeros_like(update) if self.square is None else self.square.to(update)
        self.mean = self.beta_1 * mean + (1.0 - self.beta_1) * update
        self.square = self.second(square, update.square())
        return self.rate(server_round) * self.mean / (self.square.sqrt() + self.tau)

    def second(self, square: Tensor, new: Tensor) -> Tensor:
        """v after a round whose update had the given squares."""
        raise NotImplementedError

    def rate(self, server_round: int) -> float:
        """η of a round."""
        return self.lr

    def state_dict(self) -> dict[str, Tensor]:
        """m and v."""
        if self.mean is None or self.square is None:
            return {}
        return {"mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        self.mean, self.square = state.get("mean"), state.get("square")


class ServerAdam(ServerAdaptive):
    """FedAdam: v ← β₂·v + (1 - β₂)·Δ², with Adam's correction of the rate.

    The correction counts the first round as the second, as Flower's does.
    """

    def second(self, square: Tensor, new: Tensor) -> Tensor:
        """An exponential mean."""
        return self.beta_2 * square + (1.0 - self.beta_2) * new

    def rate(self, server_round: int) -> float:
        """η·√(1 - β₂^(t+1)) / (1 - β₁^(t+1))."""
        after = server_round + 1.0
        return float(self.lr * (1.0 - self.beta_2**after) ** 0.5 / (1.0 - self.beta_1**after))


class ServerYogi(ServerAdaptive):
    """FedYogi: v ← v - (1 - β₂)·Δ²·sign(v - Δ²)."""

    def __init__(
        self, lr: float = 0.01, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3
    ) -> None:
        super().__init__(lr, beta_1, beta_2, tau)

    def second(self, square: Tensor, new: Tensor) -> Tensor:
        """It moves by as much as the update says, whatever it was."""
        return square - (1.0 - self.beta_2) * new * (square - new).sign()


class ServerAdagrad(ServerAdaptive):
    """FedAdagrad: v ← v + Δ², without momentum."""

    def __init__(self, lr: float = 0.1, tau: float = 1e-3) -> None:
        super().__init__(lr, 0.0, 0.0, tau)

    def second(self, square: Tensor, new: Tensor) -> Tensor:
        """A sum."""
        return square + new


ServerOptimizer = Callable[[Tensor, int], Tensor]
SERVER_OPTIMIZERS: dict[str, Callable[..., ServerOptimizer]] = {
    "momentum": ServerMomentum,
    "adam": ServerAdam,
    "yogi": ServerYogi,
    "adagrad": ServerAdagrad,
}
