"""FedProx: clients are held near what was broadcast (Li et al., MLSys 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

from fedtune.apps.rounds import ClientRound, ClientView, Done, RoundFunction, Train
from fedtune.cohort.plan import ClientResult
from fedtune.cohort.pull import Pull
from fedtune.server.hooks import NotNegative
from strategies.fedavg import FedAvg


def fedprox_round(view: ClientView) -> ClientRound:
    """Train f(y) + (μ/2)‖y - x‖², x what the round starts from."""
    mu = float(view.config["mu"])
    pull = Pull(anchor=view.state, strength=mu) if mu else None
    result: ClientResult = yield Train(view.state, pull)
    return Done(result, view.shared(result.tensors))


class FedProx(FedAvg):
    """FedAvg whose clients minimise f_k(y) + (μ/2)‖y - x‖² (eq. 2), x what was broadcast.

    The term is on all that a client trains, in the space of the factors; a head of its own is held
    near what it was. With μ = 0 it is FedAvg, bit for bit.

    Args:
        mu: μ.
        common: as for `AdapterStrategy`.
    """

    name: ClassVar[str] = "fedprox"
    client_round: ClassVar[RoundFunction] = staticmethod(fedprox_round)
    tells: ClassVar[tuple[str, ...]] = ("mu",)

    def __init__(self, *, mu: NotNegative = 0.01, **common: Any) -> None:
        super().__init__(**common)
        self.mu = mu
