"""Fed-SB: only an r x r matrix between frozen factors is trained (Singhal et al., 2025)."""

from __future__ import annotations

from typing import ClassVar

from fedtune.server.base import AdapterStrategy


class FedSB(AdapterStrategy):
    """Fed-SB: clients train R of W + B·R·A; B and A are the same for all and never change.

    R ← R + Σ_k p_k (R_k - R), exact because Σ p_k B·R_k·A = B·(Σ p_k R_k)·A. B, A and the first R
    come from the first step of full fine-tuning (LoRA-SB), see `adapter.init`; what is averaged,
    and what is not, follows from the tensors: where there is an R, A and B stay. Arguments as for
    `AdapterStrategy`.
    """

    name: ClassVar[str] = "fed-sb"
    adapter: ClassVar[str] = "lora-sb"
    accepts: ClassVar[frozenset[str]] = frozenset({"lora-sb"})
