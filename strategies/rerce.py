"""RERCE-Fed: consensus ADMM without duals, made for noisy links (Lari et al., arXiv 2409.13451)."""

from __future__ import annotations

from collections.abc import Iterator
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
from strategies.base import AdapterStrategy
from strategies.hooks import Count, Positive, under

X, HELD, ROUND = "rerce/x/", "rerce/held/", "rerce/round"
FIRST = 1 << 16  # draws of batches for the first answer
PREVIOUS, MEMORY = "previous.", "memory."


def rerce_round(view: ClientView) -> ClientRound:
    """x ← argmin f(x) - ⟨∇f(x_k), x⟩ + (ρ/2)‖x - s‖², s the broadcast; sends x, or 2x⁺ - x.

    x_k begins as argmin f(x) + (ρ/2)‖x - x⁰‖², the answer to round 1. Under `continual` the
    iterations of rounds since its last contact are made up for: their s was the one it holds.
    Before its first contact a client holds none, and waits.
    """
    rho, continual = float(view.config["rho"]), bool(view.config["continual"])
    names = [spec.name for spec in view.layout.trained]
    start: Tensors = {name: view.initial[name].to(view.state[name]) for name in names}
    made_up: list[Tensors] = []
    if ROUND in view.kept:
        x = {n: view.kept[X + n].to(start[n]) for n in names}
        before, contact, result = x, int(view.kept[ROUND]), None
        if continual:
            held = {n: view.kept[HELD + n].to(start[n]) for n in names}
            made_up = [held] * (view.server_round - contact - 1)
    else:
        before, x, contact = start, start, 1
        for again in range(int(view.config["first"])):
            result = yield Train(x, Pull(None, start, rho), FIRST + again)
            x = result.tensors
    fresh = [view.state] if view.server_round > contact else []
    for again, anchor in enumerate([*made_up, *fresh], 1):
        gradient: Tensors = yield Gradient(x)
        pull = Pull({name: -gradient[name] for name in names}, anchor, rho)
        result = yield Train(x, pull, again)
        before, x = x, result.tensors
    assert isinstance(result, ClientResult)
    view.kept.update({X + n: x[n] for n in names})
    if continual:
        view.kept.update({HELD + n: view.state[n] for n in names})
    view.kept[ROUND] = torch.tensor(view.server_round)
    sent = [spec.name for spec in view.layout.sent]
    return Done(result, {n: 2.0 * x[n] - before[n] if continual else x[n] for n in sent})


class RERCE(AdapterStrategy):
    """RERCE-Fed: noise-robust, dual-free ADMM, in the form for models that are not linear.

    x̄ is the mean of the x_k that arrive, and s = 2x̄_t - x̄_{t-1} is broadcast. Without noise and
    with all clients it is consensus ADMM. The data enters through each client's first answer
    alone, so noise on the links adds up over rounds: the error falls and then slowly grows.

    Args:
        rho: ρ, the weight of consensus, relative to a client's mean loss.
        continual: from its first contact on a client iterates every round with the broadcast that
            it holds, made up for at its next contact; the server averages the last 2x⁺ - x of all
            clients, and keeps N·P numbers. One not heard of yet counts as the initial model.
        first: how often `[local]` is run for a client's first answer, which should be near its
            minimum: what is missing there is not made up for.
        common: as for `AdapterStrategy`; weights are uniform.
    """

    name: ClassVar[str] = "rerce"
    adapter: ClassVar[str] = "ffa"
    accepts: ClassVar[frozenset[str]] = frozenset({"lora", "ffa", "lora-sb", "none"})
    client_round: ClassVar[RoundFunction] = staticmethod(rerce_round)
    clients_keep: ClassVar[bool] = True
    auto_weights: ClassVar[str] = "uniform"
    sends_iterates: ClassVar[bool] = True

    def __init__(
        self, *, rho: Positive = 1.0, continual: bool = False, first: Count = 1, **common: Any
    ) -> None:
        super().__init__(**common)
        self.rho, self.continual, self.first = rho, continual, first
        self._previous: dict[str, Tensor] = {}
        self._memory: dict[int, Tensor] = {}
        self._first: Tensor | None = None

    def client_config(self) -> dict[str, bool | float | str]:
        """ρ, whether clients iterate in every round, and the work for their first answer."""
        return {"rho": self.rho, "continual": self.continual, "first": self.first}

    def broadcast(self, arrays: ArrayRecord) -> ArrayRecord:
        """2x̄_t - x̄_{t-1}; under `continual` x̄ is that mean already."""
        now = to_tensors(arrays)
        if self.continual:
            if self._first is None:
                self._first = torch.cat([t.reshape(-1) for t in now.values()])
            return arrays
        before, self._previous = self._previous or now, now
        return to_record(
            {name: 2.0 * tensor - before[name].to(tensor) for name, tensor in now.items()}
        )

    def collect(self, updates: Updates) -> Updates:
        """Under `continual`, the last value of every client less what was broadcast."""
        if not self.continual:
            return updates
        assert self._first is not None
        sent = torch.cat([tensor.reshape(-1) for tensor in self._sent.values()])
        for client, row in zip(updates.clients, updates.replies, strict=True):
            self._memory[client] = row + sent
        clients = self._directory.clients
        rows = torch.stack([self._memory.get(c, self._first).to(sent) for c in clients]) - sent
        weights = torch.full((len(rows),), 1.0 / len(rows), dtype=torch.float64)
        return replace(updates, replies=rows, weights=weights, clients=clients)

    def state_dict(self) -> dict[str, Tensor]:
        """x̄ of the round before; what each client sent last."""
        return {**super().state_dict(), **dict(self._own_state())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self._previous = under(PREVIOUS, state)
        self._memory = {int(client): value for client, value in under(MEMORY, state).items()}
        self._first = self._memory.pop(-1, None)

    def _own_state(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((PREVIOUS + name, tensor) for name, tensor in self._previous.items())
        yield from ((f"{MEMORY}{client}", value) for client, value in self._memory.items())
        if self._first is not None:
            yield f"{MEMORY}-1", self._first
