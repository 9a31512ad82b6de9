"""FFA-LoRA: one frozen A for all, only B is trained and averaged (Sun et al., ICLR 2024)."""

from __future__ import annotations

from typing import ClassVar

from fedtune.server.base import AdapterStrategy

FROZEN = ".lora_A."


class FFALoRA(AdapterStrategy):
    """FFA-LoRA: one frozen A for all, only B is trained and averaged.

    B ← B + Σ_k p_k (B_k − B), exact because ΔW = s·B·A is linear in B. A never comes back from a
    client: a reply that holds a `lora_A` tensor is set aside. fedtune's clients derive A from the
    run's seed, so it is not sent either; where the initial arrays hold A (clients of another
    app), it is broadcast unchanged each round. Arguments as for `AdapterStrategy`.
    """

    name: ClassVar[str] = "ffa-lora"
    adapter: ClassVar[str] = "ffa"
    accepts: ClassVar[frozenset[str]] = frozenset({"ffa"})

    def averages(self, name: str) -> bool:
        """All but A."""
        return FROZEN not in name
