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

    Clients step along g - c_k + c; x moves as in FedAvg, and c ← c + (1/N) Σ_{k∈S} (c_k⁺ - c_k).
    The rule, pre-aggregators and server optimiser are for x; the variates are always averaged. A
    head of a client's own has none.

    Args:
        gradient: make c_k⁺ the gradient at x over all of a client's data (option I, one more pass).
            Else it is c_k - c + (x - y)/Ση of its steps (option II) where these are plain SGD.
        common: as for `AdapterStrategy`.
    """

    name: ClassVar[str] = "scaffold"
    client_round: ClassVar[RoundFunction] = staticmethod(scaffold_round)
    clients_keep: ClassVar[bool] = True
    tells: ClassVar[tuple[str, ...]] = ("gradient",)
    remembers: ClassVar[tuple[str, ...]] = ("control",)

    def __init__(self, *, gradient: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.gradient = gradient
        self.control: dict[str, Tensor] = {}

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
        for name, control in self.control.items():
            came = torch.stack([reply[CONTROL + name].to(control) for reply in replies])
            self.control[name] = control + (came - control).sum(0) / len(self._directory.clients)
        return {}

    def uploads(self, specs: Sequence[TensorSpec], itemsize: int, server_round: int) -> int:
        """x and c."""
        return 2 * super().uploads(specs, itemsize, server_round)
