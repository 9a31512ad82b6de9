"""Flag Aggregator: updates projected on the subspace that explains most (Almasi et al., 2024)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from fedtune.rules.flag import Flag as FlagRule
from fedtune.server.base import AdapterStrategy
from fedtune.server.hooks import Count, NotNegative


class Flag(AdapterStrategy):
    """The rule `flag` as a method of its own, on adapters whose updates share one basis.

    The subspace depends on the basis of the updates, so the default kind trains B alone (`ffa`).
    Each client's coefficient is in the metrics of the round.

    Args:
        m: dimension of the subspace; by default half of the round's clients, rounded up.
        regularization: λ of the pairwise terms.
        iterations: of the reweighting; the released code takes one.
        start: `uniform` (which a random subspace of R^d amounts to), or `random`.
        rule: takes the place of all these.
        common: as for `AdapterStrategy`; each client has one vote.
    """

    name: ClassVar[str] = "flag"
    adapter: ClassVar[str] = "ffa"
    accepts: ClassVar[frozenset[str]] = frozenset({"lora", "ffa", "lora-sb", "none"})
    auto_weights: ClassVar[str] = "uniform"
    own_rule: ClassVar[str] = "flag"

    def __init__(
        self,
        *,
        m: Count | None = None,
        regularization: NotNegative = 0.0,
        iterations: Count = 5,
        start: Literal["uniform", "random"] = "uniform",
        rule: FlagRule | None = None,
        **common: Any,
    ) -> None:
        own = FlagRule(m, regularization, iterations, start)
        super().__init__(rule=rule or own, **common)
