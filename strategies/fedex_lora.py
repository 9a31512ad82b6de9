"""FedEx-LoRA: what averaging the factors misses goes into the base (Singhal et al., ACL 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flwr.app import ArrayRecord
from torch import Tensor

from fedtune.adapters.factors import residual_of, truncated
from fedtune.adapters.layout import BASE, A, B
from fedtune.apps.held import base_moved, next_version, unmoved
from fedtune.errors import Incompatible
from fedtune.scenario import Scenario
from fedtune.server.base import AdapterStrategy
from fedtune.server.hooks import Count
from fedtune.server.residuals import Residuals


class FedExLoRA(AdapterStrategy):
    """FedIT, then W ← W + s·ΔW_res on the server and on every client, so that nothing is lost.

    ΔW_res = Σ p_k B_k·A_k - B̄·Ā has rank (K-1)r at most and is sent as factors of that rank; a
    client that missed rounds is sent those of all, or all of W's change where that is less.

    Args:
        residual_rank: send the best approximation of that rank instead; what it leaves out is in
            the metrics (`residual_error`, the largest relative error of a layer).
        common: as for `AdapterStrategy`; the rule is the mean, without a server optimiser.
    """

    name: ClassVar[str] = "fedex-lora"
    adapter: ClassVar[str] = "lora"
    accepts: ClassVar[frozenset[str]] = frozenset({"lora"})
    delivers: ClassVar[frozenset[str]] = frozenset({"W"})
    clients_keep: ClassVar[bool] = True
    multiplies: ClassVar[bool] = True
    reads_replies: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("residuals",)

    def __init__(self, *, residual_rank: Count | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.residual_rank = residual_rank
        self.residuals = Residuals()

    @classmethod
    def refuse(cls, scenario: Scenario) -> None:
        """All but the weighted mean: the residual is what a mean of the factors misses."""
        section = scenario.strategy
        changes = {
            "rule": section.rule,
            "pre": section.pre,
            "server_optimizer": section.server_optimizer,
        }
        for key, value in changes.items():
            if value not in ("auto", "mean", "none", []):
                raise Incompatible(
                    f"strategy.{key} = {value!r}: strategy {cls.name!r} adds to the base what "
                    "the mean of the factors misses; allowed: the mean alone"
                )

    def broadcast(self, model: dict[str, Tensor]) -> dict[str, Tensor]:
        """The factors; the base moves by what `also` says."""
        self._model = {**unmoved(model), **model}
        return {name: tensor for name, tensor in model.items() if BASE not in name}

    def also(self, client: int) -> tuple[ArrayRecord | None, dict[str, Any]]:
        """The residuals that the client's base has not seen."""
        return self.residuals.record(client, self._model, self.downlink.remember)

    def heard(self, clients: list[int]) -> None:
        """Their bases are now that of this round."""
        self.residuals.arrived(clients)

    def lost_touch(self, clients: list[int]) -> None:
        """Their bases are not known any more."""
        self.residuals.forget(clients)

    def _moved(self, replies: Sequence[Mapping[str, Tensor]], weights: Tensor) -> dict[str, Tensor]:
        moved = super()._moved(replies, weights)
        factors, errors = {}, [0.0]
        for name in [name for name in self._averaged if name.endswith(B)]:
            layer = name.removesuffix(B)
            u, v = residual_of(
                [r[layer + B] for r in replies], [r[layer + A] for r in replies], weights
            )
            if self.residual_rank is not None and u.shape[1] > self.residual_rank:
                u, v, error = truncated(u, v, self.residual_rank)
                errors.append(error)
            factors[layer] = (u, v)
        self.report.notes["residual_error"] = max(errors)
        if len(replies) == 1:
            return moved
        self.residuals.add(factors, next_version(self.residuals.version, factors))
        return {**moved, **base_moved({n: self._model[n + BASE] for n in factors}, factors)}
