"""Finding a strategy by name and making it from a scenario."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from fedtune.errors import Incompatible, ScenarioError, first_line
from fedtune.participation import Participation
from fedtune.rules import ServerOptimizer, make_pre, make_rule, make_server_optimizer
from fedtune.scenario.schema import PreSection, RuleSection, Scenario, ServerOptimizerSection

if TYPE_CHECKING:
    from strategies.base import AdapterStrategy

GROUP = "fedtune.strategies"
SHARED = ("name", "rule", "pre", "server_optimizer", "f", "weights", "max_weight")


def strategy_names() -> list[str]:
    """Names of all strategies: entry points of installed packages, and modules of `strategies`."""
    found = {point.name for point in entry_points(group=GROUP)}
    package = importlib.import_module("strategies")
    modules = {m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__)}
    return sorted(found | (modules - {"base"}))


def find_strategy(name: str) -> type[AdapterStrategy]:
    """The class of a strategy: by entry point, else in module `strategies.<name>`.

    Raises:
        ScenarioError: if there is none of that name.
    """
    for point in entry_points(group=GROUP, name=name):
        found: type[AdapterStrategy] = point.load()
        return found
    if name not in strategy_names():
        allowed = ", ".join(strategy_names())
        raise ScenarioError(f"strategy.name = {name!r}: allowed: {allowed}")
    module = importlib.import_module(f"strategies.{name.replace('-', '_')}")
    for value in vars(module).values():
        if inspect.isclass(value) and getattr(value, "name", None) == name:
            return cast("type[AdapterStrategy]", value)
    raise ScenarioError(f"strategy.name = {name!r}: its module holds no class of that name")


def adapter_kind(scenario: Scenario) -> str:
    """The adapter kind of a scenario, `auto` resolved by the strategy.

    Raises:
        ScenarioError: if the strategy cannot work with an explicit kind.
    """
    cls = find_strategy(scenario.strategy.name)
    kind = cls.adapter if scenario.adapter.kind == "auto" else scenario.adapter.kind
    if kind not in cls.accepts:
        raise Incompatible(
            f"adapter.kind = {kind!r}: strategy {cls.name!r} needs one of: "
            f"{', '.join(sorted(cls.accepts))}"
        )
    return kind


def what_clients_keep(scenario: Scenario) -> str | None:
    """The setting under which clients keep something from round to round, or None."""
    if scenario.task.head == "local":
        return "task.head = 'local'"
    if scenario.local.client_momentum:
        return f"local.client_momentum = {scenario.local.client_momentum}"
    name = scenario.strategy.name
    return f"strategy.name = {name!r}" if find_strategy(name).clients_keep else None


def make_strategy(scenario: Scenario) -> AdapterStrategy:
    """The strategy of a scenario, its own parameters checked.

    Raises:
        ScenarioError: for an unknown name or parameter.
    """
    for logger in ("flwr", "strategies"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    section = scenario.strategy
    cls = find_strategy(section.name)
    own = _own_parameters(cls)
    for key in section.parameters():
        if key not in own:
            allowed = ", ".join([*SHARED, *own])
            raise Incompatible(
                f"strategy.{key}: unknown key for {section.name!r}; allowed: {allowed}"
            )
    participation = make_participation(scenario)
    rule, parameters = _part(section.rule)
    rule = "mean" if rule == "auto" else rule
    if rule != "mean" and section.weights in ("reported", "capped"):
        raise Incompatible(
            f"strategy.weights = {section.weights!r}: rule {rule!r} gives each client one vote; "
            "allowed: auto, uniform"
        )
    f = expected_malicious(scenario) if section.f == "auto" else section.f
    return cls(
        participation=participation,
        rule=make_rule(rule, f, parameters),
        pre=[make_pre(name, f, own) for name, own in map(_part, section.pre)],
        server_optimizer=_server_optimizer(section.server_optimizer),
        weights=section.weights,
        max_weight=section.max_weight,
        fraction_evaluate=1.0 if scenario.task.head == "local" else 0.0,
        min_available_nodes=1,
        **section.parameters(),
    )


def expected_malicious(scenario: Scenario) -> int:
    """`attack.fraction` of the clients that take part in a round on average."""
    taking_part = make_participation(scenario).expected(range(scenario.clients.count))
    return round(scenario.attack.fraction * taking_part)


def make_participation(scenario: Scenario) -> Participation:
    """Who takes part, as the scenario says.

    Raises:
        ScenarioError: for a trace that cannot be read.
    """
    section = scenario.clients.participation
    groups = [(group.share, group.probability) for group in section.groups]
    trace = None if section.file is None else _read_trace(Path(section.file).expanduser())
    seed = scenario.run.seed
    return Participation(section.kind, section.value, seed, groups, section.spread, trace)


def _read_trace(path: Path) -> dict[int, list[int]]:
    try:
        rows = pd.read_csv(path, dtype=np.int64)
        found = rows.groupby("round")["client"].apply(list).to_dict()
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise ScenarioError(
            f"clients.participation.file = {str(path)!r}: must be a csv of whole numbers with "
            f"columns round and client ({reason})"
        ) from None
    if not found or min(found) < 1:
        raise ScenarioError(f"clients.participation.file = {str(path)!r}: has no round from 1 on")
    return {int(number): clients for number, clients in found.items()}


def _server_optimizer(given: str | ServerOptimizerSection) -> ServerOptimizer | None:
    name, parameters = _part(given)
    return None if name == "none" else make_server_optimizer(name, parameters)


def _part(
    given: str | RuleSection | PreSection | ServerOptimizerSection,
) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a rule or pre-aggregator."""
    return (given, {}) if isinstance(given, str) else (given.name, given.parameters())


def _own_parameters(cls: type[Any]) -> list[str]:
    """Keyword arguments that the class adds to those every strategy has."""
    shared = inspect.signature(importlib.import_module("strategies.base").AdapterStrategy.__init__)
    mine = inspect.signature(cls.__init__).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [n for n, p in mine.items() if n not in shared.parameters and p.kind not in kinds]
