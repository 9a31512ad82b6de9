"""What `fedtune list` shows: names and one line each, without importing torch where it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from fedtune.scenario import scenario_names
from fedtune.scenario.adapter import KIND
from fedtune.scenario.names import RULES_GROUP, load
from fedtune.scenario.schema import RULE
from fedtune.scenario.task import TaskSection

TASKS = {
    "image-classification": "any Transformers model with an image-classification head",
    "text-classification": "any Transformers encoder (or decoder) with a classification head",
    "causal-lm": "any Transformers decoder, on plain text or on prompts and responses",
    "least-squares": "y = H x + noise: the linear problem on which ADMM is analysed",
}
VOTE = "Rankings by their sums of positions, one client one vote (strategy frl)."
ATTACKS = {
    "none": "all clients are honest",
    "label-flip": "class c becomes C - 1 - c in what malicious clients train on",
    "cat-map": "pixels of what they train on change places by Arnold's cat map",
    "backdoor": "a trigger in some of their examples shall lead to a target class",
}


def strategies() -> dict[str, str]:
    """Strategy names with the first line of their class's docstring."""
    from fedtune.runs.strategies import find_strategy, strategy_names

    return {name: _first_line(find_strategy(name)) for name in strategy_names()}


def rules() -> dict[str, str]:
    """Rule names with the first line of their docstring."""
    from fedtune.rules import RULES

    known = {name: _first_line(rule) for name, rule in RULES.items()} | {"vote": VOTE}
    added = {n: _first_line(load(RULES_GROUP, n)) for n in RULE.names if n not in RULE.own}
    return {name: {**known, **added}[name] for name in RULE.names if name != "auto"}


def adapters() -> dict[str, str]:
    """Adapter kinds with their descriptions."""
    from fedtune.adapters.kinds import find_kind

    own = {"auto": "the strategy's own kind"}
    return own | {name: find_kind(name).description for name in KIND.names if name != "auto"}


def attacks() -> dict[str, str]:
    """Attack names with the first line of their docstring."""
    from fedtune.adversaries.attacks import ATTACKS as CRAFTED
    from fedtune.adversaries.ranks import RANK_ATTACKS

    made = {**CRAFTED, **RANK_ATTACKS}
    return {**ATTACKS, **{name: _first_line(attack) for name, attack in made.items()}}


LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "strategies": strategies,
    "adapters": adapters,
    "rules": rules,
    "attacks": attacks,
    "tasks": lambda: _allowed(TaskSection, TASKS),
    "scenarios": scenario_names,
}


def _allowed(section: Any, texts: dict[str, str]) -> dict[str, str]:
    return {kind: texts[kind] for kind in get_args(section.model_fields["kind"].annotation)}


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().split("\n", 1)[0]
