"""Finding a strategy by name and making it from a scenario."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from importlib.metadata import entry_points
from typing import Any, cast

from fedtune.adapters.kinds import find_kind
from fedtune.adapters.layout import Layout
from fedtune.errors import Incompatible, ScenarioError
from fedtune.participation import Participation
from fedtune.rules import RULES, ServerOptimizer, make_pre, make_rule, make_server_optimizer
from fedtune.rules.base import Stateful
from fedtune.runs.traces import read_trace
from fedtune.scenario.names import check_types, load
from fedtune.scenario.schema import PreSection, RuleSection, Scenario, ServerOptimizerSection
from fedtune.server.base import AdapterStrategy

GROUP = "fedtune.strategies"
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
    framed = adapter_kind(scenario) == "lora-sb" and scenario.adapter.init != "random"
    cls = find_strategy(scenario.strategy.name)
    return cls.delivers | frozenset({"A", "B"} if framed else ())


def what_clients_keep(scenario: Scenario) -> str | None:
    """The setting under which clients keep something from round to round, or None."""
    if scenario.task.head == "local":
        return "task.head = 'local'"
    if scenario.local.client_momentum:
        return f"local.client_momentum = {scenario.local.client_momentum}"
    if adapter_kind(scenario) == "lora-sb" and scenario.adapter.init != "random":
        return "adapter.kind = 'lora-sb'"
    name = scenario.strategy.name
    cls = find_strategy(name)
    return f"strategy.name = {name!r}" if cls.clients_keep or cls.keeps_sent else None


def make_strategy(scenario: Scenario) -> AdapterStrategy:
    """The strategy of a scenario, its own parameters checked.

    Raises:
        ScenarioError: for an unknown name or parameter.
    """
    for logger in ("flwr", "strategies"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    section = scenario.strategy
    cls = find_strategy(section.name)
    _check_parameters(cls, section.parameters())
    participation = make_participation(scenario)
    rule, parameters = _part(section.rule)
    own_rule = rule == "auto"
    rule = cls.own_rule if own_rule else rule
    if rule != cls.own_rule and cls.own_rule != "mean":
        raise Incompatible(
            f"strategy.rule = {rule!r}: strategy {cls.name!r} is a rule itself; allowed: auto"
        )
    cls.refuse(scenario)
    if "W" in cls.delivers:
        _check_base(scenario)
    if rule == "vote" and "rank" not in cls.accepts:
        raise Incompatible(f"strategy.rule = 'vote': counts rankings, and {cls.name!r} sends none")
    if cls.accepts == {"rank"}:
        _check_votes(scenario, rule)
        rule = "mean" if rule == "vote" else rule
    if cls.sends_iterates:
        _check_iterates(scenario)
    if cls.changes_basis:
        _check_basis(scenario, rule)
    if cls.weighs_by_probability:
        _check_weighted_sum(scenario, rule)
    weights = scenario.clients.weights
    if rule != "mean" and weights in ("reported", "capped"):
        raise Incompatible(
            f"clients.weights = {weights!r}: rule {rule!r} gives each client one vote; "
            "allowed: auto, uniform"
        )
    if rule == "fltrust" and not scenario.task.server_examples:
        raise Incompatible(
            "strategy.rule = 'fltrust': needs data of the server's own; set task.server_examples, "
            "e.g. to 100"
        )
    if rule == "fltrust" and scenario.task.head == "local":
        raise Incompatible("strategy.rule = 'fltrust': the server has no head like a client's own")
    f = expected_malicious(scenario) if section.f == "auto" else section.f
    made: dict[str, Any] = (
        {} if own_rule and cls.own_rule != "mean" else {"rule": make_rule(rule, f, parameters)}
    )
    return cls(
        participation=participation,
        **made,
        pre=[make_pre(name, f, own) for name, own in map(_part, section.pre)],
        server_optimizer=_server_optimizer(section.server_optimizer),
        weights=weights,
        max_weight=scenario.clients.max_weight,
        fraction_evaluate=1.0 if scenario.task.head == "local" else 0.0,
        min_available_nodes=1,
        clients_remember=not _noisy_downlink(scenario),
        **section.parameters(),
    )


def _check_parameters(cls: type[AdapterStrategy], given: dict[str, Any]) -> None:
    """Refuse parameters that the class does not have, or of another type or range."""
    own = _own_parameters(cls)
    for key in given:
        if key not in own:
            allowed = ", ".join([*SHARED, *own])
            raise Incompatible(f"strategy.{key}: unknown key for {cls.name!r}; allowed: {allowed}")
    check_types("strategy", cls, given)


def _check_iterates(scenario: Scenario) -> None:
    """Refuse what changes the points of a method's own iteration."""
    why = f"strategy {scenario.strategy.name!r} iterates over the points that clients send; allowed"
    changes = [
        ("local.client_momentum", scenario.local.client_momentum, (0.0,)),
        ("local.weight_decay", scenario.local.weight_decay, (0.0,)),
        ("strategy.server_optimizer", _part(scenario.strategy.server_optimizer)[0], ("none",)),
        ("clients.weights", scenario.clients.weights, ("auto", "uniform")),
        ("task.head", scenario.task.head, ("shared", "frozen")),
    ]
    for key, value, allowed in changes:
        if value not in allowed:
            raise Incompatible(f"{key} = {value!r}: {why}: {', '.join(map(str, allowed))}")


def _noisy_downlink(scenario: Scenario) -> bool:
    return scenario.faults.noise_down > 0 or scenario.faults.snr_down is not None


def check_factors(strategy: AdapterStrategy, layout: Layout) -> None:
    """Refuse factors whose product is not B·A, or whose A cannot be orthonormal."""
    if layout.chooses:
        raise Incompatible(
            f"adapter.kind: strategy {strategy.name!r} multiplies A and B themselves"
        )
    shapes = {spec.name: spec.shape for spec in layout.specs}
    for name, (rank, width) in ((n, s) for n, s in shapes.items() if ".lora_A." in n):
        most = min(width, shapes[name.replace(".lora_A.", ".lora_B.")][0])
        if strategy.changes_basis and rank > most:
            raise Incompatible(
                f"adapter.rank = {rank}: strategy {strategy.name!r} makes A orthonormal, and a "
                f"layer has {most} directions; allowed: at most {most}"
            )


def _check_base(scenario: Scenario) -> None:
    """Refuse what a base that moves does not survive."""
    name = scenario.strategy.name
    if _noisy_downlink(scenario):
        raise Incompatible(
            "faults: noise on what clients receive would give each a base of its own, and "
            f"strategy {name!r} needs the same everywhere; leave noise_down and snr_down out"
        )
    if scenario.engine.precision == "bfloat16":
        raise Incompatible(
            f"engine.precision = 'bfloat16': rounds away what strategy {name!r} adds to the base; "
            "allowed: float32, float64"
        )


def _check_basis(scenario: Scenario, rule: str) -> None:
    """Refuse what remembers updates from round to round where their basis changes meanwhile."""
    why = (
        f"remembers updates over rounds, and strategy {scenario.strategy.name!r} changes their "
        "basis; allowed"
    )
    optimizer = _part(scenario.strategy.server_optimizer)[0]
    if optimizer != "none":
        raise Incompatible(f"strategy.server_optimizer = {optimizer!r}: {why}: none")
    if scenario.local.client_momentum:
        raise Incompatible(f"local.client_momentum = {scenario.local.client_momentum}: {why}: 0")
    if isinstance(make_rule(rule), Stateful):
        stateless = [name for name in RULES if not isinstance(make_rule(name), Stateful)]
        raise Incompatible(f"strategy.rule = {rule!r}: {why}: {', '.join(stateless)}")


def _check_votes(scenario: Scenario, rule: str) -> None:
    """Refuse what needs numbers where clients send rankings."""
    name = scenario.strategy.name
    if rule == "fltrust":
        raise Incompatible(f"strategy.rule = 'fltrust': compares numbers, and {name!r} sends votes")
    if scenario.adapter.by_magnitude:
        why = "with adapter.by_magnitude the least edges of a ranking count as much as its top"
        if float(scenario.strategy.parameters().get("upload", 1.0)) < 1.0:
            raise Incompatible(f"strategy.upload: {why}; allowed: 1.0")
        if scenario.attack.kind == "vem":
            raise Incompatible(f"attack.kind = 'vem': {why}; allowed: none, reverse-ranks")
    if scenario.local.client_momentum:
        raise Incompatible(
            f"local.client_momentum = {scenario.local.client_momentum}: {name!r} sends rankings, "
            "which have no momentum"
        )


def _check_weighted_sum(scenario: Scenario, rule: str) -> None:
    """Refuse what an importance-weighted sum of updates cannot go with."""
    name, taking_part = scenario.strategy.name, scenario.clients.participation
    weights = scenario.clients.weights
    why = f"strategy {name!r} sums updates over probabilities to take part; allowed"
    if rule != "mean":
        raise Incompatible(f"strategy.rule = {rule!r}: {why}: auto, mean")
    if scenario.strategy.pre:
        raise Incompatible(f"strategy.pre: {why}: []")
    if weights not in ("auto", "uniform"):
        raise Incompatible(f"clients.weights = {weights!r}: {why}: auto, uniform")
    if taking_part.known and taking_part.kind in ("clock", "trace"):
        raise Incompatible(
            f"clients.participation.kind = {taking_part.kind!r}: has no probabilities for "
            f"strategy {name!r} to know; set clients.participation.known = false"
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
    count = scenario.clients.count
    trace = read_trace("clients.participation.file", section.file, count)
    seed = scenario.run.seed
    spread, known = section.spread, section.known
    return Participation(section.kind, section.value, seed, groups, spread, trace, known)


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
    shared = inspect.signature(AdapterStrategy.__init__)
    mine = inspect.signature(cls.__init__).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [n for n, p in mine.items() if n not in shared.parameters and p.kind not in kinds]
