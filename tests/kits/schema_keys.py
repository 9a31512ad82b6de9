"""Every key of the scenario's schema, and what shows that it acts.

A case is a pair of scenarios that differ in one key. Whoever adds a key, or a part with parameters,
adds a case (tests/kits/key_cases.py and the files beside it), or an exception with its reason.
"""

from __future__ import annotations

import copy
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from fedtune.adversaries.setup import CRAFTED, POISONING, attack_keys
from fedtune.rules import PRE, RULES, SERVER_OPTIMIZERS
from fedtune.runs.strategies import _own_parameters, find_strategy, strategy_names
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.clients import PartitionSection
from fedtune.tasks.partition import partition_keys

Overrides = Mapping[str, Any]
OF_PART = re.compile(r"\[[^\]]*\]")


@dataclass(frozen=True)
class Case:
    """A key and two scenarios that differ in it.

    Attributes:
        key: as `schema_keys` has it.
        scene: overrides of both scenarios.
        change: those of the second one.
        look: what a scenario leaves, as plain values; a method of `Looks`.
        also: keys that cannot stay as they are when this one changes.
    """

    key: str
    scene: Overrides
    change: Overrides
    look: Callable[[Any, Overrides], Any]
    also: tuple[str, ...] = field(default=())


def case(
    key: str,
    value: Any,
    scene: Overrides,
    look: Callable[[Any, Overrides], Any],
    also: Overrides | None = None,
) -> Case:
    """The case of a key that is set to a value."""
    more = also or {}
    return Case(key, scene, {path_of(key): value, **more}, look, tuple(more))


def path_of(key: str) -> str:
    """Where a key lies in a scenario: `attack[ipm].epsilon` is `attack.epsilon`."""
    return OF_PART.sub("", key)


def schema_keys() -> set[str]:
    """All keys that a scenario may hold, those of strategies, rules, attacks, ... by their part."""
    return {*leaves(Scenario), *_parameters()}


def leaves(model: type[BaseModel], start: str = "") -> Iterator[str]:
    """Dotted names of a model's keys, through tables and lists of tables."""
    for name, found in model.model_fields.items():
        kinds = [kind for kind in _atoms(found.annotation) if kind is not type(None)]
        tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(tables) < len(kinds):
            yield start + name
        for table in tables:
            yield from leaves(table, f"{start}{name}.")


def scenario_of(overrides: Overrides) -> Scenario:
    """The default scenario with overrides, which stay as they are."""
    return load_scenario(Scenario(), copy.deepcopy(dict(overrides)))


def differing(one: Overrides, other: Overrides) -> set[str]:
    """The keys in which two scenarios differ."""
    a, b = (flat(scenario_of(given).model_dump()) for given in (one, other))
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


def flat(table: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """A nested table by dotted keys; of a list of tables, each key once with all its values."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        rows = value if isinstance(value, list) else [value]
        if rows and all(isinstance(row, dict) for row in rows) and start + name not in OPEN:
            for row in rows:
                for key, one in flat(row, f"{start}{name}.").items():
                    found.setdefault(key, []).append(one)
        else:
            found[start + name] = value
    return found


OPEN = {"compare.over", "compare.variants", "compare.tune", "compare.tune_at", "compare.reference",
        "compare.claim.parts.left", "compare.claim.parts.right", "adapter.rank_pattern",
        "adapter.alpha_pattern"}  # fmt: skip


def _atoms(annotation: Any) -> list[Any]:
    """What an annotation may hold, through unions, lists and Annotated; a dict is one thing."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _atoms(inner[0])
    if origin in (Union, types.UnionType, list):
        return [atom for one in inner for atom in _atoms(one)]
    return [annotation]


def _parameters() -> Iterator[str]:
    for name in strategy_names():
        yield from (f"strategy[{name}].{key}" for key in _own_parameters(find_strategy(name)))
    for kind, parts in (("rule", RULES), ("pre", PRE), ("server_optimizer", SERVER_OPTIMIZERS)):
        for name, part in parts.items():
            yield from (f"strategy.{kind}[{name}].{key}" for key in _arguments(part))
    for kind in (*CRAFTED, *POISONING):
        yield from (f"attack[{kind}].{key}" for key in attack_keys(kind))
    for kind in _values(PartitionSection, "kind"):
        yield from (f"clients.partition[{kind}].{key}" for key in partition_keys(kind))


def _arguments(part: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(part).parameters)


def _values(model: type[BaseModel], name: str) -> tuple[str, ...]:
    return get_args(model.model_fields[name].annotation)
