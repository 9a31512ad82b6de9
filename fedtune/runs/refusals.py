"""What cannot go together, and why: it follows from what each part declares."""

from __future__ import annotations

from typing import Any

from fedtune.adapters.layout import Layout
from fedtune.errors import Incompatible
from fedtune.rules import RULES, make_rule
from fedtune.rules.base import Stateful
from fedtune.rules.trust import FLTrust
from fedtune.runs.privacy import check_any_level, check_example_level, check_user_level
from fedtune.scenario.schema import PreSection, RuleSection, Scenario, ServerOptimizerSection
from fedtune.server.base import AdapterStrategy


def check_parts(cls: type[AdapterStrategy], scenario: Scenario, rule: str) -> None:
    """Refuse a strategy with a rule, and with what else the scenario names.

    Args:
        rule: its name, `auto` resolved.

    Raises:
        Incompatible: with the reason, and what is allowed.
    """
    cls.refuse(scenario)
    check_any_level(scenario)
    check_example_level(cls, scenario)
    check_user_level(cls, scenario, rule)
    _check_rule(cls, scenario, rule)
    if "W" in cls.delivers:
        _check_base(scenario)
    if cls.accepts == {"rank"}:
        _check_votes(scenario, rule)
    if cls.sends_iterates:
        _check_iterates(scenario)
    if cls.changes_basis:
        _check_basis(scenario, rule)
    if cls.weighs_by_probability:
        _check_weighted_sum(scenario, rule)


def _check_rule(cls: type[AdapterStrategy], scenario: Scenario, rule: str) -> None:
    """Refuse rules that the strategy has no use for, or that miss something."""
    weights, own = scenario.clients.weights, scenario.strategy.parameters()
    if rule != cls.own_rule and cls.own_rule != "mean":
        raise Incompatible(
            f"strategy.rule = {rule!r}: strategy {cls.name!r} is a rule itself; allowed: auto"
        )
    if cls.own_rule != "mean" and own and scenario.strategy.rule != "auto":
        raise Incompatible(
            f"strategy.{min(own)}: strategy.rule names its own parameters; give it there"
        )
    if rule == "vote" and "rank" not in cls.accepts:
        raise Incompatible(f"strategy.rule = 'vote': counts rankings, and {cls.name!r} sends none")
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


def _check_iterates(scenario: Scenario) -> None:
    """Refuse what changes the points of a method's own iteration."""
    why = f"strategy {scenario.strategy.name!r} iterates over the points that clients send; allowed"
    changes = [
        ("local.client_momentum", scenario.local.client_momentum, (0.0,)),
        ("local.weight_decay", scenario.local.weight_decay, (0.0,)),
        ("strategy.server_optimizer", part_of(scenario.strategy.server_optimizer)[0], ("none",)),
        ("clients.weights", scenario.clients.weights, ("auto", "uniform")),
        ("task.head", scenario.task.head, ("shared", "frozen")),
    ]
    for key, value, allowed in changes:
        if value not in allowed:
            raise Incompatible(f"{key} = {value!r}: {why}: {', '.join(map(str, allowed))}")


def noisy_downlink(scenario: Scenario) -> bool:
    return scenario.faults.noise_down > 0 or scenario.faults.snr_down is not None


def check_bare(strategy: AdapterStrategy, scenario: Scenario) -> None:
    """Refuse what a server without data and weights cannot do.

    Raises:
        Incompatible: with the reason, and what is allowed.
    """
    why = "the server has neither data nor weights of the base; give task.test"
    needs = {
        "strategy.rule": isinstance(strategy.rule, FLTrust),
        "run.early_stopping": scenario.run.early_stopping is not None,
        "adapter.init": scenario.adapter.init in ("public", "pooled"),
        "adapter.kind": scenario.adapter.kind == "rank",
    }
    for key in (key for key, given in needs.items() if given):
        raise Incompatible(f"{key}: {why}")


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
    if noisy_downlink(scenario):
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
    optimizer = part_of(scenario.strategy.server_optimizer)[0]
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


def part_of(
    given: str | RuleSection | PreSection | ServerOptimizerSection,
) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a rule or pre-aggregator."""
    return (given, {}) if isinstance(given, str) else (given.name, given.parameters())
