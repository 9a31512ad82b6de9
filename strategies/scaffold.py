"""SCAFFOLD: control variates correct the drift of clients (Karimireddy et al., ICML 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedtune.adapters.layout import TensorSpec
from fedtune.apps.rounds import ClientRound, ClientView, Done, Gradient, RoundFunction, Train
from fedtune.cohort.plan import ClientResult
from fedtune.cohort.pull import Pull
from fedtune.rules.weights import policy_counts
from fedtune.scenario.local import LocalSection
from fedtune.scenario.schema import Scenario
from strategies.fedavg import FedAvg

CONTROL = "control/"


def scaffold_round(view: ClientView) -> ClientRound:
    """Steps along g - c_k + c; then sends y and c + c_k⁺ - c_k, and keeps c_k⁺ (Algorithm 1)."""
    zero = {spec.name: torch.zeros_like(view.state[spec.name]) for spec in view.layout.trained}
    shared = [spec.name for spec in view.layout.sent]
    server = {name: view.extra[CONTROL + name] for name in shared}
    own = view.recall(CONTROL) or zero
    pull = Pull(linear={**zero, **{name: server[name] - own[name] for name in shared}})
    result: ClientResult = yield Train(view.state, pull)
    if plain_sgd(view.local) and not view.config["gradient"]:
        mean = {n: (view.state[n] - result.tensors[n]) / result.rates for n in shared}
        new = {name: own[name] - server[name] + mean[name] for name in shared}
    else:
        new = yield Gradient(view.state)
    view.keep(CONTROL, {**zero, **{name: new[name] for name in shared}})
    controls = {CONTROL + n: server[n] + new[n] - own[n] for n in shared}
    return Done(result, {**view.shared(result.tensors), **controls})


def plain_sgd(local: LocalSection) -> bool:
    """Whether y = x - Σ η·gradient, so that the steps tell the mean gradient."""
    return local.optimizer == "sgd" and not (local.momentum or local.weight_decay or local.clip)


class SCAFFOLD(FedAvg):
    """FedAvg with control variates c of the server and c_k of each client, twice the traffic.

    Clients step along g - c_k + c; x moves as in FedAvg, and c ← c + Σ_{k∈S} p_k (c_k⁺ - c_k) is
    Σ_k p_k c_k over all N clients, with the weights that x moves by. So every step is 0 where
    Σ_k p_k ∇f_k = 0: it minimises Σ_k p_k f_k, whatever clients do in a round. The paper has
    p_k = 1/N. By numbers of examples p_k = n_k / Σ_j n_j, n_k what a client first reports; those
    not heard of yet, whose c_k is 0, count as the mean of the others.

    The rule, pre-aggregators and server optimiser are for x; the variates are averaged, and alike
    where x does not move by the mean alone. A head of a client's own has none.

    Args:
        gradient: make c_k⁺ the gradient at x over all of a client's data (option I, one more pass).
            Else it is c_k - c + (x - y)/Ση of its steps (option II) where these are plain SGD.
        common: as for `AdapterStrategy`.
    """

    name: ClassVar[str] = "scaffold"
    client_round: ClassVar[RoundFunction] = staticmethod(scaffold_round)
    clients_keep: ClassVar[bool] = True
    tells: ClassVar[tuple[str, ...]] = ("gradient",)
    remembers: ClassVar[tuple[str, ...]] = ("control", "counts")

    def __init__(self, *, gradient: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.gradient = gradient
        self.control: dict[str, Tensor] = {}
        self.counts: dict[int, Tensor] = {}

    @classmethod
    def asks_gradients(cls, scenario: Scenario) -> bool:
        """Under option I."""
        own = scenario.strategy.parameters()
        return own.get("gradient") is True or not plain_sgd(scenario.local)

    def broadcast(self, model: dict[str, Tensor]) -> dict[str, Tensor]:
        """x and c."""
        self.control = {
            name: self.control.get(name, torch.zeros_like(tensor)).to(tensor)
            for name, tensor in model.items()
            if self.averages(name)
        }
        return {**model, **{CONTROL + n: t for n, t in self.control.items()}}

    def averages(self, name: str) -> bool:
        """All but the variates."""
        return not name.startswith(CONTROL) and super().averages(name)

    def expects(self, name: str) -> bool:
        """Both."""
        return super().averages(name.removeprefix(CONTROL))

    def combine(self, replies: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Move c; the model has no part in it."""
        kept, relative = self._weigh()
        for name, control in self.control.items():
            came = torch.stack([reply[CONTROL + name].to(control) for reply in replies])
            weights = relative.to(control).view(-1, *([1] * control.dim()))
            moved = (weights * (came - control)).sum(0) / len(self._directory.clients)
            self.control[name] = kept * control + moved
        return {}

    def _weigh(self) -> tuple[float, Tensor]:
        """What stays of c as the mean of all n_k moves; the n_k of the round over it, (n,)."""
        used, before = self.report.used, self._mean_count()
        told = [self.report.examples[client] for client in used]
        counts = policy_counts(self.policy, told, self.max_weight)
        self.counts = {**dict(zip(used, counts, strict=True)), **self.counts}
        mean = self._mean_count()
        return before / mean, torch.stack([self.counts[client] for client in used]) / mean

    def _mean_count(self) -> float:
        """Of the clients heard of; while there are none c is 0, and it does not matter."""
        counts = [self.counts[client] for client in sorted(self.counts)]
        return float(torch.stack(counts).mean()) if counts else 1.0

    def uploads(self, specs: Sequence[TensorSpec], itemsize: int, server_round: int) -> int:
        """x and c."""
        return 2 * super().uploads(specs, itemsize, server_round)
