"""RERCE-Fed: consensus ADMM without duals, made for noisy links (Lari et al., arXiv 2409.13451)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fedtune.apps.rounds import ClientRound, ClientView, Done, Gradient, RoundFunction, Train
from fedtune.cohort.pull import Pull
from fedtune.rules import Updates
from fedtune.server.hooks import Count, Positive
from strategies.admm import ADMM

X, HELD, ROUND = "rerce/x/", "rerce/held/", "rerce/round"
FIRST = 1 << 16  # draws of batches for the first answer


def rerce_round(view: ClientView) -> ClientRound:
    """x ← argmin f(x) - ⟨∇f(x_k), x⟩ + (ρ/2)‖x - s‖², s the broadcast; sends x, or 2x⁺ - x.

    x_k begins as argmin f(x) + (ρ/2)‖x - x⁰‖², the answer to round 1. Under `continual` iterations
    since its last contact are made up for, with the s that it holds; before the first it waits.
    """
    rho, continual, first = (view.config[key] for key in RERCE.tells)
    x, held = view.recall(X), view.recall(HELD)
    missed = view.server_round - int(view.kept.get(ROUND, torch.tensor(1)))
    before = start = view.start()
    if x is None:
        x = start
        for again in range(first):
            result = yield Train(x, Pull(None, start, rho), FIRST + again)
            x = result.tensors
    made_up = [held] * (missed - 1) if held else []
    for again, anchor in enumerate([*made_up, *[view.state][:missed]], 1):
        gradient = yield Gradient(x)
        pull = Pull({name: -gradient[name] for name in start}, anchor, rho)
        result = yield Train(x, pull, again)
        before, x = x, result.tensors
    view.keep(X, x)
    if continual:
        view.keep(HELD, view.state)
    view.kept[ROUND] = torch.tensor(view.server_round)
    answer = {name: 2.0 * t - before[name] for name, t in x.items()} if continual else x
    return Done(result, view.shared(answer))


class RERCE(ADMM):
    """RERCE-Fed: noise-robust, dual-free ADMM, in the form for models that are not linear.

    x̄ is the mean of the x_k that arrive, and s = 2x̄_t - x̄_{t-1} is broadcast. Without noise and
    with all clients it is consensus ADMM. Data enters through each client's first answer alone, so
    noise on the links adds up over rounds: the error falls and then slowly grows.

    Args:
        rho: ρ, the weight of consensus, relative to a client's mean loss.
        continual: clients iterate every round with the broadcast they hold, made up for at the next
            contact; all clients' last 2x⁺ - x (N·P numbers), at first x⁰, are averaged.
        first: how often `[local]` is run for a client's first answer: near its minimum, ideally.
        common: as for `AdapterStrategy`; weights are uniform.
    """

    name: ClassVar[str] = "rerce"
    client_round: ClassVar[RoundFunction] = staticmethod(rerce_round)
    takes_gradients: ClassVar[bool] = True
    tells: ClassVar[tuple[str, ...]] = ("rho", "continual", "first")
    remembers: ClassVar[tuple[str, ...]] = ("previous", "memory")

    def __init__(
        self, *, rho: Positive = 1.0, continual: bool = False, first: Count = 1, **common: Any
    ) -> None:
        super().__init__(rho=rho, **common)
        self.continual, self.first = continual, first
        self.previous: dict[str, Tensor] = {}
        self.memory: dict[int, Tensor] = {}

    def broadcast(self, model: dict[str, Tensor]) -> dict[str, Tensor]:
        """2x̄_t - x̄_{t-1}; under `continual` x̄ is that mean already."""
        if self.continual:
            return model
        before = self.previous or model
        return {name: 2.0 * t - before[name].to(t) for name, t in model.items()}

    def heard(self, clients: list[int]) -> None:
        """x̄ moves only if somebody answers."""
        self.previous = self._model if clients else self.previous

    def collect(self, updates: Updates) -> Updates:
        """Under `continual`, the last value of every client less what was broadcast."""
        if not self.continual:
            return updates
        sent = torch.cat([tensor.reshape(-1) for tensor in self._sent.values()])
        self.memory = self.memory or dict.fromkeys(self._directory.clients, sent)
        self.memory.update(zip(updates.clients, updates.replies + sent, strict=True))
        return updates.replaced({c: self.memory[c].to(sent) - sent for c in sorted(self.memory)})
