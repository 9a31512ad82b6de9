"""RoLoRA: B and A are trained in turn, so averages are exact (Chen et al., NeurIPS 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from fedtune.adapters.layout import TensorSpec
from fedtune.apps.rounds import ClientRound, ClientView, Done, RoundFunction, Train
from fedtune.cohort.plan import ClientResult
from fedtune.server.base import AdapterStrategy
from fedtune.server.hooks import Count

FACTORS = ("B", "A")


def rolora_round(view: ClientView) -> ClientRound:
    """Train one factor; the other stays as it was sent."""
    other = _other(str(view.config["factor"]))
    only = frozenset(spec.name for spec in view.layout.trained if other not in spec.name)
    result: ClientResult = yield Train(view.state, only=only)
    return Done(result, view.shared(result.tensors))


class RoLoRA(AdapterStrategy):
    """Clients train B in the first round, A in the second, and so on; half the traffic of FedIT.

    The factor that is not trained is the same for all, so Σ p_k B_k·A = (Σ p_k B_k)·A, and likewise
    for A. B comes first: with B = 0 the gradient of A is 0. A round without a usable reply does not
    count. With a period that never ends it is FFA-LoRA.

    Args:
        period: rounds that a factor is trained before the other's turn.
        common: as for `AdapterStrategy`.
    """

    name: ClassVar[str] = "rolora"
    adapter: ClassVar[str] = "lora"
    accepts: ClassVar[frozenset[str]] = frozenset({"lora"})
    client_round: ClassVar[RoundFunction] = staticmethod(rolora_round)
    keeps_sent: ClassVar[bool] = True
    changes_basis: ClassVar[bool] = True
    tells: ClassVar[tuple[str, ...]] = ("factor",)
    remembers: ClassVar[tuple[str, ...]] = ("done",)

    def __init__(self, *, period: Count = 1, **common: Any) -> None:
        super().__init__(**common)
        self.period = period
        self.done = 0
        self.factor = FACTORS[0]

    def broadcast(self, model: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both factors; whose turn it is is settled here."""
        self.factor = self._turn(self.done)
        return model

    def _turn(self, done: int) -> str:
        return FACTORS[done // self.period % 2]

    def averages(self, name: str) -> bool:
        """All but the factor whose turn it is not."""
        return _other(self.factor) not in name

    def uploads(self, specs: Sequence[TensorSpec], itemsize: int, server_round: int) -> int:
        """All but the other factor; rounds without a reply left out of account."""
        other = _other(self._turn(server_round - 1))
        own = [spec for spec in specs if other not in spec.name]
        return super().uploads(own, itemsize, server_round)

    def heard(self, clients: list[int]) -> None:
        """Count the round, if there was a reply."""
        self.done += bool(clients) or self.mechanism is not None


def _other(factor: str) -> str:
    return f".lora_{'A' if factor == 'B' else 'B'}."
