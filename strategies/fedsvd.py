"""FedSVD: FFA-LoRA whose A follows the aggregate (Lee et al., NeurIPS 2025)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from fedtune.adapters.factors import refactored
from fedtune.server.hooks import Count, NotNegativeCount
from strategies.ffa_lora import FROZEN, FFALoRA

TRAINED = ".lora_B."


class FedSVD(FFALoRA):
    """FFA-LoRA, then A ← Vᵀ and B ← U·S of the SVD of the new B·A.

    The product does not change, and A gets orthonormal rows that follow what was learned. Clients
    are sent A and B of one refactorisation together, and train B. The first A is that of FFA-LoRA.

    Args:
        period: rounds from one refactorisation to the next.
        warmup: rounds before the first period begins.
        common: as for `AdapterStrategy`.
    """

    name: ClassVar[str] = "fedsvd"
    delivers: ClassVar[frozenset[str]] = frozenset({"A"})
    keeps_sent: ClassVar[bool] = True
    changes_basis: ClassVar[bool] = True
    multiplies: ClassVar[bool] = True

    def __init__(self, *, period: Count = 1, warmup: NotNegativeCount = 0, **common: Any) -> None:
        super().__init__(**common)
        self.period, self.warmup = period, warmup

    def reparametrised(self, model: dict[str, Tensor]) -> dict[str, Tensor]:
        """With the factors of the SVD, every `period` rounds."""
        since = self._round - self.warmup
        if since <= 0 or since % self.period:
            return model
        new = dict(model)
        for name in [name for name in model if TRAINED in name]:
            partner = name.replace(TRAINED, FROZEN)
            new[name], new[partner] = refactored(model[name], model[partner])
        return new
