"""RERCE-Fed: consensus ADMM without duals, made for noisy links (Lari et al., arXiv 2409.13451)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedtune.adapters.layout import Tensors
from fedtune.apps.rounds import ClientRound, ClientView, Done, Gradient, RoundFunction, Train
from fedtune.cohort.plan import ClientResult
from fedtune.cohort.pull import Pull
from fedtune.grids.arrays import to_record, to_tensors
from fedtune.rules import Updates
from fedtune.server.base import AdapterStrategy
from fedtune.server.hooks import Count, Positive

X, HELD, ROUND = "rerce/x/", "rerce/held/", "rerce/round"
FIRST = 1 << 16  # draws of batches for the first answer


def rerce_round(view: ClientView) -> ClientRound:
    """x ← argmin f(x) - ⟨∇f(x_k), x⟩ + (ρ/2)‖x - s‖², s the broadcast; sends x, or 2x⁺ - x.

    x_k begins as argmin f(x) + (ρ/2)‖x - x⁰‖², the answer to round 1. Under `continual` iterations
    since its last contact are made up for, with the s that it holds; before the first it waits.
    """
    rho, continual = float(view.config["rho"]), bool(view.config["continual"])
    start, result, made_up = view.start(), None, []
    x, contact = view.recall(X), int(view.kept.get(ROUND, torch.tensor(1)))
    if x is None:
        x = start
        for again in range(int(view.config["first"])):
            result = yield Train(x, Pull(None, start, rho), FIRST + again)
            before, x = start, result.tensors
    elif continual:
        before, made_up = x, [view.recall(HELD)] * (view.server_round - contact - 1)
    fresh = [view.state] if view.server_round > contact else []
    for again, anchor in enumerate([*made_up, *fresh], 1):
        gradient: Tensors = yield Gradient(x)
        pull = Pull({name: -gradient[name] for name in start}, anchor, rho)
        result = yield Train(x, pull, again)
        before, x = x, result.tensors
    assert isinstance(result, ClientResult)
    view.keep(X, x)
    if continual:
        view.keep(HELD, view.state)
    view.kept[ROUND] = torch.tensor(view.server_round)
    sent = {s.name: x[s.name] for s in view.layout.sent}
    return Done(result, {n: 2.0 * t - before[n] for n, t in sent.items()} if continual else sent)


class RERCE(AdapterStrategy):
    """RERCE-Fed: noise-robust, dual-free ADMM, in the form for models that are not linear.

    x̄ is the mean of the x_k that arrive, and s = 2x̄_t - x̄_{t-1} is broadcast. Without noise and
    with all clients it is consensus ADMM. Data enters through each client's first answer alone, so
    noise on the links adds up over rounds: the error falls and then slowly grows.

    Args:
        rho: ρ, the weight of consensus, relative to a client's mean loss.
        continual: clients iterate every round with the broadcast that they hold, made up for at the
            next contact; the server averages the last 2x⁺ - x of all clients (N·P numbers), of one
            not heard of yet the initial model.
        first: how often `[local]` is run for a client's first answer: near its minimum, ideally.
        common: as for `AdapterStrategy`; weights are uniform.
    """

    name: ClassVar[str] = "rerce"
    adapter: ClassVar[str] = "ffa"
    accepts: ClassVar[frozenset[str]] = frozenset({"lora", "ffa", "none"})
    client_round: ClassVar[RoundFunction] = staticmethod(rerce_round)
    clients_keep: ClassVar[bool] = True
    auto_weights: ClassVar[str] = "uniform"
    sends_iterates: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("previous", "memory")

    def __init__(
        self, *, rho: Positive = 1.0, continual: bool = False, first: Count = 1, **common: Any
    ) -> None:
        super().__init__(**common)
        self.rho, self.continual, self.first = rho, continual, first
        self.previous: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}
        self.memory: dict[int, Tensor] = {}

    def client_config(self) -> dict[str, bool | float | str]:
        """ρ, whether clients iterate in every round, and the work for their first answer."""
        return {"rho": self.rho, "continual": self.continual, "first": self.first}

    def broadcast(self, arrays: ArrayRecord) -> ArrayRecord:
        """2x̄_t - x̄_{t-1}; under `continual` x̄ is that mean already."""
        if self.continual:
            return arrays
        now = to_tensors(arrays)
        before, self._now = self.previous or now, now
        return to_record({name: 2.0 * t - before[name].to(t) for name, t in now.items()})

    def heard(self, clients: list[int]) -> None:
        """x̄ moves only if somebody answers."""
        if clients:
            self.previous = self._now

    def collect(self, updates: Updates) -> Updates:
        """Under `continual`, the last value of every client less what was broadcast."""
        if not self.continual:
            return updates
        clients = self._directory.clients
        sent = torch.cat([tensor.reshape(-1) for tensor in self._sent.values()])
        self.memory = self.memory or dict.fromkeys(clients, sent)
        for client, row in zip(updates.clients, updates.replies, strict=True):
            self.memory[client] = row + sent
        rows = torch.stack([self.memory[client].to(sent) for client in clients]) - sent
        weights = torch.full((len(rows),), 1.0 / len(rows), dtype=torch.float64)
        return replace(updates, replies=rows, weights=weights, clients=clients)
