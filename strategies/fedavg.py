"""FedAvg on adapters: A and B averaged separately (FedIT; Zhang et al., 2024)."""

from __future__ import annotations

from typing import ClassVar

from fedtune.server.base import AdapterStrategy


class FedAvg(AdapterStrategy):
    """FedIT: everything that clients send is averaged, A and B separately.

    θ ← θ + Σ_k p_k (θ_k − θ). With kind `lora`, Ā = Σ p_k A_k and B̄ = Σ p_k B_k, whose product
    misses the mean of the products by Σ p_k (B_k − B̄)(A_k − Ā); with kinds
    `ffa` and `lora-sb` it is exact. Arguments as for `AdapterStrategy`.
    """

    name: ClassVar[str] = "fedavg"
    adapter: ClassVar[str] = "lora"
    accepts: ClassVar[frozenset[str]] = frozenset({"lora", "ffa", "lora-sb", "none"})
