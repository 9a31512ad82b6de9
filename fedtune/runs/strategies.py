"""Finding a strategy by name and making it from a scenario."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from importlib.metadata import entry_points
from typing import Any, cast

from fedtune.adapters.kinds import find_kind
from fedtune.errors import Incompatible, ScenarioError
from fedtune.participation import Participation
from fedtune.rules import ServerOptimizer, make_pre, make_rule, make_server_optimizer
from fedtune.runs.refusals import check_parts, noisy_downlink, part_of
from fedtune.runs.traces import read_trace
from fedtune.scenario.names import check_types, load
from fedtune.scenario.schema import Scenario, ServerOptimizerSection
from fedtune.server.base import AdapterStrategy

GROUP = "fedtune.strategies"
IMPORTANCE = "importance"
SHARED = ("name", "rule", "pre", "server_optimizer", "f")


def strategy_names() -> list[str]:
    """Names of all strategies: entry points of installed packages, and modules of `strategies`."""
    found = {point.name for point in entry_points(group=GROUP)}
    package = importlib.import_module("strategies")
    modules = {m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__)}
    return sorted(found | modules)


def find_strategy(name: str) -> type[AdapterStrategy]:
    """The class of a strategy: by entry point, else in module `strategies.<name>`.

    Raises:
        ScenarioError: if there is none of that name.
    """
    if any(entry_points(group=GROUP, name=name)):
        return cast("type[AdapterStrategy]", load(GROUP, name))
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
    if (find_kind(kind).like or kind) not in cls.accepts:
        raise Incompatible(
            f"adapter.kind = {kind!r}: strategy {cls.name!r} needs one of: "
            f"{', '.join(sorted(cls.accepts))}"
        )
    if scenario.adapter.form != "antithetic" and kind != "rank":
        raise Incompatible(
            f"adapter.form = {scenario.adapter.form!r}: is of kind 'rank', not {kind!r}; allowed: "
            "antithetic"
        )
    return kind


def delivered_roles(scenario: Scenario) -> frozenset[str]:
    """Roles of the frozen tensors that the server sends: they cannot be had from the seed."""
    cls = find_strategy(scenario.strategy.name)
    return cls.delivers | frozenset({"A", "B"} if finds_frame(scenario) else ())


def finds_frame(scenario: Scenario) -> bool:
    """Whether B, A and the first R of kind `lora-sb` come from data and not from the seed."""
    return adapter_kind(scenario) == "lora-sb" and frame_source(scenario) != "random"


def frame_source(scenario: Scenario) -> str:
    """`adapter.init`, `auto` resolved."""
    given = scenario.adapter.init
    private = scenario.privacy.mechanism != "none"
    return given if given != "auto" else "random" if private else "client-sketch"


def what_clients_keep(scenario: Scenario) -> str | None:
    """The setting under which clients keep something from round to round, or None."""
    if scenario.task.head == "local":
        return "task.head = 'local'"
    if scenario.local.client_momentum:
        return f"local.client_momentum = {scenario.local.client_momentum}"
    if finds_frame(scenario):
        return "adapter.kind = 'lora-sb'"
    name = scenario.strategy.name
    cls = find_strategy(name)
    return f"strategy.name = {name!r}" if cls.clients_keep or cls.keeps_sent else None


def make_strategy(scenario: Scenario) -> AdapterStrategy:
    """The strategy of a scenario, its own parameters checked.

    Raises:
        ScenarioError: for an unknown name or parameter.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    section = scenario.strategy
    cls = find_strategy(section.name)
    _check_parameters(cls, section.parameters())
    participation = make_participation(scenario)
    rule, parameters = part_of(section.rule)
    rule = cls.own_rule if rule == "auto" else rule
    check_parts(cls, scenario, rule)
    rule = "mean" if rule == "vote" else rule
    weights = scenario.clients.weights
    if weights == "auto" and not counts_are_told(scenario):
        weights = "uniform"
    f = expected_malicious(scenario) if section.f == "auto" else section.f
    brings_it = section.rule == "auto" and cls.own_rule != "mean"
    made: dict[str, Any] = {} if brings_it else {"rule": make_rule(rule, f, parameters)}
    strategy = cls(
        participation=participation,
        **made,
        pre=[make_pre(name, f, own) for name, own in map(part_of, section.pre)],
        server_optimizer=_server_optimizer(section.server_optimizer),
        weights=weights,
        max_weight=scenario.clients.max_weight,
        fraction_evaluate=1.0 if scenario.task.head == "local" else 0.0,
        min_available_nodes=1,
        clients_remember=not noisy_downlink(scenario),
        **section.parameters(),
    )
    strategy.warns = False  # a run's observers tell what its report says
    return strategy


def weighting(scenario: Scenario) -> str:
    """How much each client counts: `uniform`, `reported`, `capped`, or alike by `importance`."""
    strategy = make_strategy(scenario)
    return IMPORTANCE if strategy.weighs_by_probability else strategy.policy


def counts_are_told(scenario: Scenario) -> bool:
    """Whether clients say how many examples they hold."""
    section = scenario.privacy
    return section.mechanism == "none" or section.public_counts


def _check_parameters(cls: type[AdapterStrategy], given: dict[str, Any]) -> None:
    """Refuse parameters that the class does not have, or of another type or range."""
    own = _own_parameters(cls)
    for key in given:
        if key not in own:
            allowed = ", ".join([*SHARED, *own])
            raise Incompatible(f"strategy.{key}: unknown key for {cls.name!r}; allowed: {allowed}")
    check_types("strategy", cls, given)


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
    count = scenario.clients.count
    trace = read_trace("clients.participation.file", section.file, count)
    seed = scenario.run.seed
    spread, known = section.spread, section.known
    return Participation(section.kind, section.value, seed, groups, spread, trace, known)


def _server_optimizer(given: str | ServerOptimizerSection) -> ServerOptimizer | None:
    name, parameters = part_of(given)
    return None if name == "none" else make_server_optimizer(name, parameters)


def _own_parameters(cls: type[Any]) -> list[str]:
    """Keyword arguments that the class adds to those every strategy has."""
    shared = inspect.signature(AdapterStrategy.__init__)
    mine = inspect.signature(cls.__init__).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [n for n, p in mine.items() if n not in shared.parameters and p.kind not in kinds]
