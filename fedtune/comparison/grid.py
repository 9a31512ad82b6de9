"""The grid of a comparison: every combination of the axes, and which of them cannot be."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from fedtune.adversaries.setup import check_attack
from fedtune.errors import Incompatible, ScenarioError
from fedtune.reporting.measures import shown
from fedtune.runs.settling import settle_parts
from fedtune.runs.strategies import make_strategy, strategy_names, weighting
from fedtune.runs.traces import read_trace
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.compare import VARIANT, CompareSection
from fedtune.scenario.names import Named
from fedtune.scenario.trouble import AttackSection

ALL, STRATEGY, ATTACK = "all", "strategy.name", "attack.kind"
Over = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """One combination; its cells differ in their seeds only.

    Attributes:
        over: the axes' keys to its values.
        scenario: settled, under the base's seed; None if the combination cannot be.
        reason: why it cannot be.
    """

    over: Over
    scenario: Scenario | None
    reason: str | None = None

    @property
    def label(self) -> str:
        """What it is called in tables and pictures."""
        return label_of(self.over) or (self.scenario.strategy.name if self.scenario else "")

    @cached_property
    def weights(self) -> str | None:
        """How much each client counts in it."""
        return weighting(self.scenario) if self.scenario else None


def parse_axes(option: str, given: Iterable[str]) -> dict[str, list[Any]]:
    """`key=v1,v2` strings as keys and values; a value is TOML, else plain text.

    Args:
        option: its name, for messages.
        given: the strings.

    Raises:
        ScenarioError: for one that is not of that form, or a key that comes twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in given:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key or not values.strip():
            raise ScenarioError(
                f"{option} {text!r}: must be key=value,value,..., e.g. adapter.rank=4,8"
            )
        if key in axes:
            raise ScenarioError(f"{option} {key}: is given twice; name all its values in one")
        axes[key] = [_value(part) for part in _split(values)]
    return axes


def families(base: Scenario, axes: Mapping[str, list[Any]]) -> list[Family]:
    """All combinations of the axes' values, in order, each settled or with the reason why not.

    Args:
        base: the scenario that they vary.
        axes: dotted keys to values.

    Raises:
        ScenarioError: for a value that is wrong by itself, or if no combination is left.
    """
    keys = list(axes)
    found = []
    for values in itertools.product(*(axes[key] for key in keys)):
        over = dict(zip(keys, values, strict=True))
        try:
            found.append(Family(over, settled(base, over)))
        except Incompatible as error:
            found.append(Family(over, None, str(error)))
    if all(family.scenario is None for family in found):
        raise ScenarioError(f"--over: no combination is possible: {found[0].reason}")
    return found


def settled(base: Scenario, over: Mapping[str, Any]) -> Scenario:
    """A scenario with values laid over it, its strategy checked, its adapter and paths settled.

    What follows from its rounds is settled once its budget is known.
    An attack by nobody is no attack, so those of a grid are trained once.
    """
    section = base.compare or CompareSection()
    named = section.variants[over[VARIANT]] if VARIANT in over else {}
    own = {key: value for key, value in over.items() if key != VARIANT}
    scenario = settle_parts(load_scenario(base, {**named, **_with_attack(own)}))
    make_strategy(scenario)
    check_attack(scenario)
    read_trace("faults.trace", scenario.faults.trace, scenario.clients.count)
    if scenario.attack.fraction == 0:
        scenario.attack = AttackSection(fraction=0.0)
    scenario.compare = None
    return scenario


def _with_attack(over: Over) -> Over:
    """Values of axes, of which an attack may be a table: its kind and its parameters."""
    attack = over.get(ATTACK)
    if not isinstance(attack, Mapping):
        return over
    if "kind" not in attack:
        raise ScenarioError(f"{ATTACK} = {dict(attack)}: names no kind of attack")
    own = {f"attack.{key}": value for key, value in attack.items()}
    if both := sorted((own.keys() & over.keys()) - {ATTACK}):
        raise ScenarioError(f"{ATTACK} = {dict(attack)}: {both[0]} is an axis of its own")
    return {**over, **own}


def expand(axes: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The axes with `all` spelled out.

    Raises:
        ScenarioError: where there is no list of all values.
    """
    return {key: _all(key) if values == [ALL] else list(values) for key, values in axes.items()}


def label_of(over: Mapping[str, Any]) -> str:
    """A combination in words: strategies by name, other keys by their last part and value."""
    return ", ".join(
        str(value) if key in (STRATEGY, VARIANT) else f"{key.rpartition('.')[2]} {shown(value)}"
        for key, value in over.items()
    )


def _all(key: str) -> list[Any]:
    if key == STRATEGY:
        return list(strategy_names())
    section, _, name = key.partition(".")
    owner = Scenario.model_fields.get(section)
    model = owner.annotation if owner else None
    if isinstance(model, type) and issubclass(model, BaseModel) and name in model.model_fields:
        field = model.model_fields[name]
        if named := next((known for known in field.metadata if isinstance(known, Named)), None):
            return [value for value in named.names if value != "auto"]
        kind = field.annotation
        if get_origin(kind) is Literal:
            return [value for value in get_args(kind) if value != "auto"]
    raise ScenarioError(f"--over {key}={ALL}: {key} has no list of all its values; name them")


def _split(text: str) -> list[str]:
    """At commas outside brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for index, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [part.strip() for part in [*parts, text[start:]]]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
