"""Consensus ADMM with duals, the method that RERCE-Fed changes (Boyd et al., 2011, section 7.1)."""

from __future__ import annotations

from typing import Any, ClassVar

from fedtune.apps.rounds import ClientRound, ClientView, Done, RoundFunction, Train
from fedtune.cohort.plan import ClientResult
from fedtune.cohort.pull import Pull
from fedtune.server.base import AdapterStrategy
from fedtune.server.hooks import Positive

X, U = "admm/x/", "admm/u/"


def admm_round(view: ClientView) -> ClientRound:
    """u ← u + x - z; x ← argmin f(x) + (ρ/2)‖x - z + u‖², z the broadcast; sends x + u.

    Before its first contact u is 0 and x the initial model, which counts as no dual step.
    """
    names = [spec.name for spec in view.layout.trained]
    x, u = view.recall(X), view.recall(U)
    if x is None or u is None:
        x = view.start()
        u = {name: 0.0 * tensor for name, tensor in x.items()}
    else:
        u = {name: u[name] + x[name] - view.state[name] for name in names}
    anchor = {name: view.state[name] - u[name] for name in names}
    result: ClientResult = yield Train(x, Pull(None, anchor, float(view.config["rho"])))
    view.keep(X, result.tensors)
    view.keep(U, u)
    return Done(result, view.shared({name: result.tensors[name] + u[name] for name in names}))


class ADMM(AdapterStrategy):
    """Consensus ADMM: z is the mean of the x_k + u_k, and each client keeps x_k and a dual u_k.

    Noise on the way down enters x_k and u_k alike. Clients that do not take part keep both.

    Args:
        rho: ρ, the weight of consensus, relative to a client's mean loss.
        common: as for `AdapterStrategy`; weights are uniform.
    """

    name: ClassVar[str] = "admm"
    adapter: ClassVar[str] = "ffa"
    accepts: ClassVar[frozenset[str]] = frozenset({"lora", "ffa", "none"})
    client_round: ClassVar[RoundFunction] = staticmethod(admm_round)
    clients_keep: ClassVar[bool] = True
    auto_weights: ClassVar[str] = "uniform"
    sends_iterates: ClassVar[bool] = True
    tells: ClassVar[tuple[str, ...]] = ("rho",)

    def __init__(self, *, rho: Positive = 1.0, **common: Any) -> None:
        super().__init__(**common)
        self.rho = rho
