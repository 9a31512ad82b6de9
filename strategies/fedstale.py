"""FedStale: stale updates of absent clients, weighed by β (Rodio and Neglia, ECAI 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedtune.rules import Updates
from fedtune.server.hooks import Count, Positive
from strategies.fedavg_unbiased import FedAvgUnbiased

Beta = Literal["auto"] | Annotated[float, Field(ge=0, le=1)]


class FedStale(FedAvgUnbiased):
    """θ ← θ + Σ_{k∈S} (w_k/p_k)(Δ_k - β h_k) + β Σ_k w_k h_k, h_k the last Δ_k that arrived, or 0.

    Its mean over who takes part is that of all clients' updates for every β, its variance
    Σ_k w_k² (1 - p_k)/p_k ‖Δ_k - β h_k‖². β = 0 is `fedavg-unbiased`, β = 1 is `fedvarp`. A round
    in which nobody replies moves the model by β Σ_k w_k h_k. The server keeps the last update of
    every client, as it came.

    Args:
        beta: β, or `auto` (ours): the minimiser of the variance, Σ c_k⟨Δ_k, h_k⟩ / Σ c_k‖h_k‖² with
            c_k = w_k² (1 - p_k)/p_k, its numerator estimated from participants, in [0, 1].
        cutoff: as for `FedAvgUnbiased`, and
        most: likewise.
        common: as for `AdapterStrategy`; weights are uniform, the rule is the mean.
    """

    name: ClassVar[str] = "fedstale"
    remembers: ClassVar[tuple[str, ...]] = ("estimate", "memory", "mean")

    def __init__(
        self, *, beta: Beta = 0.5, cutoff: Count = 50, most: Positive = 100.0, **common: Any
    ) -> None:
        super().__init__(cutoff=cutoff, most=most, **common)
        self.beta = beta
        self.memory: dict[int, Tensor] = {}
        self.mean: Tensor | None = None

    def collect(self, updates: Updates) -> Updates:
        """Rows n·(w_k/p_k)(Δ_k - β h_k) + β H, of which the mean is taken; moves the memory."""
        replies, clients = updates.replies, updates.clients
        held = torch.stack([self._held(client, replies) for client in clients])
        mean = torch.zeros_like(replies[0]) if self.mean is None else self.mean.to(replies)
        beta = self._best(replies, held, clients) if self.beta == "auto" else float(self.beta)
        self.report.notes["beta"] = beta
        rows = super().collect(replace(updates, replies=replies - beta * held) if beta else updates)
        weight = 1.0 / len(self._directory.clients)
        self.mean = mean + weight * (replies - held).sum(0)
        self.memory.update(zip(clients, replies, strict=True))
        return _with_added(rows, mean, beta) if beta else rows

    def alone(self) -> Tensor | None:
        """β H."""
        if self.mean is None or self.beta in (0.0, "auto"):
            return None
        return float(self.beta) * self.mean.to(next(iter(self._averaged.values())))

    def _held(self, client: int, like: Tensor) -> Tensor:
        return self.memory[client].to(like) if client in self.memory else torch.zeros_like(like[0])

    def _best(self, replies: Tensor, held: Tensor, clients: Sequence[int]) -> float:
        """The β of least variance; 0 where nothing is remembered or all take part."""
        inverse = self.inverse_of(clients)
        along = (replies * held).sum(1, dtype=torch.float64).cpu() * (inverse - 1.0)
        squares = sum(
            (self._inverse.get(client, 1.0) - 1.0) * float(h.square().sum(dtype=torch.float64))
            for client, h in self.memory.items()
        )
        found = float((along * inverse).sum()) / squares if squares > 0 else 0.0
        return min(1.0, max(0.0, found))


def _with_added(updates: Updates, row: Tensor, times: float) -> Updates:
    """Each of the rows plus a multiple of another one, kept as a combination of both."""
    assert updates.mixing is not None
    added = updates.mixing.new_full((len(updates.mixing), 1), times)
    mixing = torch.cat([updates.mixing, added], 1)
    return replace(updates, replies=torch.cat([updates.replies, row.unsqueeze(0)]), steps=(mixing,))
