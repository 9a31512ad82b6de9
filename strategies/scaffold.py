"""SCAFFOLD: control variates correct the drift of clients (Karimireddy et al., ICML 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedtune.adapters.layout import Tensors, TensorSpec
from fedtune.apps.rounds import ClientRound, ClientView, Done, Gradient, RoundFunction, Train
from fedtune.cohort.plan import ClientResult
from fedtune.cohort.pull import Pull
from fedtune.errors import Incompatible
from fedtune.grids.arrays import to_record, to_tensors
from fedtune.scenario.schema import LocalSection, Scenario
from strategies.fedavg import FedAvg
from strategies.hooks import under

CONTROL = "control/"
Variate = Literal["auto", "steps", "gradient"]


def scaffold_round(view: ClientView) -> ClientRound:
    """Steps along g - c_k + c; then sends y and c + c_k⁺ - c_k, and keeps c_k⁺ (Algorithm 1)."""
    names = [spec.name for spec in view.layout.trained]
    zero = {name: torch.zeros_like(view.state[name]) for name in names}
    server = {name: view.extra.get(CONTROL + name, zero[name]) for name in names}
    own = {name: view.kept.get(CONTROL + name, zero[name]).to(zero[name]) for name in names}
    result: ClientResult = yield Train(
        view.state, Pull(linear={name: server[name] - own[name] for name in names})
    )
    wanted = view.config["variate"]
    if wanted == "gradient" or (wanted == "auto" and not plain_sgd(view.local)):
        new: Tensors = yield Gradient(view.state)
    else:
        new = {
            name: own[name]
            - server[name]
            + (view.state[name] - result.tensors[name]) / result.rates
            for name in names
        }
    view.kept.update({CONTROL + name: new[name] for name in names})
    sent = {spec.name: result.tensors[spec.name] for spec in view.layout.sent}
    moved = {CONTROL + name: server[name] + new[name] - own[name] for name in sent}
    return Done(result, {**sent, **moved})


def plain_sgd(local: LocalSection) -> bool:
    """Whether y = x - Σ η·gradient, so that the steps tell the mean gradient."""
    return local.optimizer == "sgd" and not (local.momentum or local.weight_decay or local.clip)


class SCAFFOLD(FedAvg):
    """FedAvg with control variates c of the server and c_k of each client, twice the traffic.

    Clients step along g - c_k + c; x moves as in FedAvg, and c ← c + (1/N) Σ_{k∈S} (c_k⁺ - c_k).
    The rule, pre-aggregators and server optimiser are for x; the variates are always averaged. A
    head of a client's own has a variate of its own and none of the server's.

    Args:
        variate: c_k⁺ = c_k - c + (x - y)/Ση of its steps (option II, valid for plain SGD), or the
            gradient at x over all its data (option I, one more pass, for any optimiser); `auto`:
            the first under plain SGD, else the second.
        common: as for `AdapterStrategy`.
    """

    name: ClassVar[str] = "scaffold"
    client_round: ClassVar[RoundFunction] = staticmethod(scaffold_round)
    clients_keep: ClassVar[bool] = True

    def __init__(self, *, variate: Variate = "auto", **common: Any) -> None:
        super().__init__(**common)
        self.variate = variate
        self._control: dict[str, Tensor] = {}

    @classmethod
    def refuse(cls, scenario: Scenario) -> None:
        """Steps that are no sum of gradients, for option II."""
        if scenario.strategy.parameters().get("variate") == "steps" and not plain_sgd(
            scenario.local
        ):
            raise Incompatible(
                "strategy.variate = 'steps': needs local.optimizer = 'sgd' without momentum, "
                "weight_decay and clip; allowed here: auto, gradient"
            )

    def client_config(self) -> dict[str, bool | float | str]:
        """How c_k⁺ is made."""
        return {"variate": self.variate}

    def broadcast(self, arrays: ArrayRecord) -> ArrayRecord:
        """x and c."""
        model = to_tensors(arrays)
        self._control = {
            name: self._control.get(name, torch.zeros_like(tensor)).to(tensor)
            for name, tensor in model.items()
            if self.averages(name)
        }
        return to_record({**model, **{CONTROL + n: t for n, t in self._control.items()}})

    def averages(self, name: str) -> bool:
        """All but the variates."""
        return not name.startswith(CONTROL) and super().averages(name)

    def expects(self, name: str) -> bool:
        """Both."""
        return super().averages(name.removeprefix(CONTROL))

    def combine(self, replies: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Move c; the model has no part in it."""
        share = 1.0 / len(self._directory.clients)
        for name, control in self._control.items():
            came = torch.stack([reply[CONTROL + name].to(control) for reply in replies])
            self._control[name] = control + share * (came - control).sum(0)
        return {}

    def uploads(self, specs: Sequence[TensorSpec], itemsize: int, server_round: int) -> int:
        """x and c."""
        return 2 * super().uploads(specs, itemsize, server_round)

    def state_dict(self) -> dict[str, Tensor]:
        """With c."""
        return {**super().state_dict(), **{CONTROL + n: t for n, t in self._control.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self._control = under(CONTROL, state)
