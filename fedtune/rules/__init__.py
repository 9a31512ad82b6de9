"""Aggregation rules: how the updates of a round become one update.

A pre-aggregator turns `Updates` into `Updates`; a rule turns them into an `Aggregate`. Both are
small classes whose constructor arguments are the scenario's parameters; none knows of Flower.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedtune.errors import ScenarioError
from fedtune.rules.base import Aggregate, Updates
from fedtune.rules.clipping import CenteredClipping
from fedtune.rules.coordinates import MeaMed, Median, Phocas, TrimmedMean
from fedtune.rules.flag import Flag
from fedtune.rules.geometric import GeometricMedian
from fedtune.rules.krum import Bulyan, Krum, MultiKrum
from fedtune.rules.mean import Mean, NormalizedMean
from fedtune.rules.pre import ARC, NNM, Bucketing, Clip
from fedtune.rules.server import SERVER_OPTIMIZERS, ServerOptimizer
from fedtune.rules.subsets import MDA, DnC
from fedtune.rules.trust import FLTrust
from fedtune.scenario.names import RULES_GROUP, check_types, load

Rule = Callable[[Updates], Aggregate]
PreAggregator = Callable[[Updates], Updates]

RULES: dict[str, Callable[..., Rule]] = {
    "mean": Mean,
    "median": Median,
    "trimmed-mean": TrimmedMean,
    "krum": Krum,
    "multi-krum": MultiKrum,
    "geometric-median": GeometricMedian,
    "bulyan": Bulyan,
    "meamed": MeaMed,
    "phocas": Phocas,
    "centered-clipping": CenteredClipping,
    "mda": MDA,
    "dnc": DnC,
    "fltrust": FLTrust,
    "flag": Flag,
    "normalized-mean": NormalizedMean,
}
PRE: dict[str, Callable[..., PreAggregator]] = {
    "nnm": NNM,
    "bucketing": Bucketing,
    "clip": Clip,
    "arc": ARC,
}


def aggregated(updates: Updates, pre: Sequence[PreAggregator], rule: Rule) -> Aggregate:
    """What pre-aggregators, in order, and then a rule make of a round, with the notes of all."""
    for part in pre:
        updates = part(updates)
    found = rule(updates)
    return replace(found, notes={**updates.notes, **found.notes})


def make_rule(name: str, f: int = 0, parameters: Mapping[str, Any] | None = None) -> Rule:
    """The rule of that name: one of `RULES`, or one that a package adds by entry point.

    Args:
        f: Byzantine clients to be prepared for; rules that have no use for it do without.
        parameters: of its constructor.

    Raises:
        ScenarioError: for an unknown name or parameter.
    """
    added = None if name in RULES else load(RULES_GROUP, name)
    known = RULES if added is None else {name: added}
    rule: Rule = _made("strategy.rule", known, name, f, parameters or {})
    return rule


def make_pre(name: str, f: int = 0, parameters: Mapping[str, Any] | None = None) -> PreAggregator:
    """The pre-aggregator of that name; arguments and errors as for `make_rule`."""
    pre: PreAggregator = _made("strategy.pre", PRE, name, f, parameters or {})
    return pre


def make_server_optimizer(
    name: str, parameters: Mapping[str, Any] | None = None
) -> ServerOptimizer:
    """The server optimiser of that name; arguments and errors as for `make_rule`."""
    made: ServerOptimizer = _made(
        "strategy.server_optimizer", SERVER_OPTIMIZERS, name, 0, parameters or {}
    )
    return made


def _made(
    key: str, known: Mapping[str, Any], name: str, f: int, parameters: Mapping[str, Any]
) -> Any:
    if name not in known:
        raise ScenarioError(f"{key} = {name!r}: allowed: {', '.join(known)}")
    allowed = list(inspect.signature(known[name]).parameters)
    for parameter in parameters:
        if parameter not in allowed:
            own = ", ".join(allowed) or "none"
            raise ScenarioError(f"{key}.{parameter}: no parameter of {name!r}; allowed: {own}")
    check_types(key, known[name], parameters)
    given = {"f": f} if "f" in allowed else {}
    try:
        return known[name](**{**given, **parameters})
    except TypeError as error:  # a rule of another package that needs an argument
        raise ScenarioError(f"{key} = {name!r}: {error}") from None


__all__ = [
    "PRE",
    "RULES",
    "SERVER_OPTIMIZERS",
    "Aggregate",
    "PreAggregator",
    "Rule",
    "ServerOptimizer",
    "Updates",
    "aggregated",
    "make_pre",
    "make_rule",
    "make_server_optimizer",
]
