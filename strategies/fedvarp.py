"""FedVARP: the last update of every absent client stands in for it (Jhunjhunwala et al., 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

from fedtune.server.hooks import Count, Positive
from strategies.fedstale import FedStale


class FedVARP(FedStale):
    """FedStale with β = 1: with updates that do not change, no variance from who takes part.

    The paper (UAI 2022, Algorithm 1) samples clients uniformly; with unequal probabilities this is
    its importance-weighted form, as FedStale's authors have it.

    Args:
        cutoff: as for `FedAvgUnbiased`, and
        most: likewise.
        common: as for `AdapterStrategy`; weights are uniform, the rule is the mean.
    """

    name: ClassVar[str] = "fedvarp"

    def __init__(self, *, cutoff: Count = 50, most: Positive = 100.0, **common: Any) -> None:
        super().__init__(beta=1.0, cutoff=cutoff, most=most, **common)
