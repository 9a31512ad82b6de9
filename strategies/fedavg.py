"""FedAvg on adapters: A and B averaged separately (FedIT; Zhang et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from fedtune.adapters.factors import aggregation_error
from fedtune.adapters.layout import A, B
from fedtune.errors import Incompatible
from fedtune.scenario import Scenario
from fedtune.server.base import AdapterStrategy


class FedAvg(AdapterStrategy):
    """FedIT: everything that clients send is averaged, A and B separately.

    θ ← θ + Σ_k p_k (θ_k − θ). With kind `lora`, Ā = Σ p_k A_k and B̄ = Σ p_k B_k, whose product
    misses the mean of the products by Σ p_k (B_k − B̄)(A_k − Ā); with kinds
    `ffa` and `lora-sb` it is exact.

    Args:
        aggregation_error: put the size of what is missed, over that of the mean of the products,
            into the metrics of each round.
        common: as for `AdapterStrategy`.
    """

    name: ClassVar[str] = "fedavg"
    adapter: ClassVar[str] = "lora"
    accepts: ClassVar[frozenset[str]] = frozenset({"lora", "ffa", "lora-sb", "none"})

    def __init__(self, *, aggregation_error: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.aggregation_error = aggregation_error

    @classmethod
    def refuse(cls, scenario: Scenario) -> None:
        """The error of what is exact."""
        kind = scenario.adapter.kind
        if scenario.strategy.parameters().get("aggregation_error") and kind not in ("auto", "lora"):
            raise Incompatible(
                f"strategy.aggregation_error: with adapter.kind = {kind!r} there is none; allowed: "
                "'lora'"
            )

    def _moved(self, replies: Sequence[Mapping[str, Tensor]], weights: Tensor) -> dict[str, Tensor]:
        if self.aggregation_error:
            layers = [n.removesuffix(A) for n in self._averaged if n.endswith(A)]
            b, a = ([[r[n + side] for r in replies] for n in layers] for side in (B, A))
            self.report.notes["aggregation_error"] = aggregation_error(b, a, weights)
        return super()._moved(replies, weights)
