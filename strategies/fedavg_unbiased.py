"""FedAvg whose expectation over participation is that of full participation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedtune.participation import IntervalEstimate
from fedtune.rules import Updates
from fedtune.server.base import AdapterStrategy
from fedtune.server.hooks import Count, Positive


class FedAvgUnbiased(AdapterStrategy):
    """Importance-weighted FedAvg: θ ← θ + Σ_{k∈S} (w_k/p_k) Δ_k with w_k = 1/N, never renormalised.

    Its mean over who takes part is that of all clients' updates, if participation is independent
    and p_k is right; rare clients make it noisy. Where the server does not know p_k
    (`participation.known`), they are estimated from intervals (FedAU; Wang and Ji, ICLR 2024).

    Args:
        cutoff: the longest interval of the estimate, in rounds.
        most: the most that 1/p_k may be.
        common: as for `AdapterStrategy`; weights are uniform, the rule is the mean.
    """

    name: ClassVar[str] = "fedavg-unbiased"
    adapter: ClassVar[str] = "lora"
    accepts: ClassVar[frozenset[str]] = frozenset({"lora", "ffa", "lora-sb", "none"})
    auto_weights: ClassVar[str] = "uniform"
    weighs_by_probability: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("estimate",)

    def __init__(self, *, cutoff: Count = 50, most: Positive = 100.0, **common: Any) -> None:
        super().__init__(**common)
        self.most = most
        self.estimate = IntervalEstimate(cutoff)
        self._inverse: dict[int, float] = {}

    def heard(self, clients: list[int]) -> None:
        """Take 1/p_k of what was known before the round, then learn from it."""
        everyone = self._directory.clients
        source = self.participation if self.participation.known else self.estimate
        inverse = 1.0 / source.probabilities(everyone).clip(1e-12)
        self.report.notes["capped"] = float((inverse > self.most).sum())
        self._inverse = dict(zip(everyone, inverse.clip(max=self.most).tolist(), strict=True))
        self.estimate.saw(everyone, clients)

    def inverse_of(self, clients: Sequence[int]) -> Tensor:
        """1/p_k of clients in this round, float64."""
        return torch.tensor([self._inverse[client] for client in clients], dtype=torch.float64)

    def collect(self, updates: Updates) -> Updates:
        """Rows n·(w_k/p_k)·Δ_k, of which the mean is taken."""
        scale = self.inverse_of(updates.clients) * (len(updates) / len(self._directory.clients))
        self.report.notes["weight"] = float(scale.mean())
        return updates.mixed(torch.diag(scale))
