"""From a scenario's `[attack]` to who is malicious, what they train on and what they send."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt

from fedtune.adapters.kinds import find_kind
from fedtune.adversaries.attacks import ATTACKS
from fedtune.adversaries.crafted import Attack
from fedtune.adversaries.poisoned import (
    Backdoor,
    CatMap,
    LabelFlip,
    Poisoned,
    check_classes,
    draw_malicious,
    poisoned_rows,
)
from fedtune.adversaries.ranks import RANK_ATTACKS, RankAttack
from fedtune.errors import Incompatible
from fedtune.scenario import Scenario
from fedtune.scenario.names import check_types
from fedtune.scenario.section import Probability
from fedtune.tasks.base import Data, Images, Rows
from fedtune.tasks.load import Task

SHARES = {"label-flip": 1.0, "cat-map": 1.0, "backdoor": 0.5}
POISONING = {
    "label-flip": ("share",),
    "cat-map": ("share", "iterations"),
    "backdoor": ("target", "size", "token", "share"),
}
CRAFTED: dict[str, Callable[..., Any]] = {**ATTACKS, **RANK_ATTACKS}


@dataclass(frozen=True)
class Adversary:
    """The malicious clients of a run.

    Attributes:
        malicious: logical ids.
        train: what clients train on.
        attack: on what they send, if any.
        rank_attack: on the rankings that they send, if any.
        triggered: test data with the trigger and the target as label, and
        triggered_rows: those whose class is another; for the attack's success.
    """

    malicious: list[int]
    train: Data
    attack: Attack | None = None
    rank_attack: RankAttack | None = None
    triggered: Data | None = None
    triggered_rows: Rows | None = None


def make_adversary(scenario: Scenario, task: Task) -> Adversary:
    """The adversary of a scenario.

    Raises:
        ScenarioError: for a parameter that the attack does not have, or a task without classes.
    """
    section, seed = scenario.attack, scenario.run.seed
    check_attack(scenario)
    if section.kind == "none":
        return Adversary([], task.train)
    malicious = draw_malicious(list(task.clients.eligible), section.fraction, seed)
    own = section.parameters()
    if section.kind in RANK_ATTACKS:
        return Adversary(malicious, task.train, rank_attack=RANK_ATTACKS[section.kind]())
    if section.kind in ATTACKS:
        return Adversary(malicious, task.train, ATTACKS[section.kind](**own))
    if section.kind == "label-flip":
        rows = _rows(task, malicious, own, section.kind, seed)
        return Adversary(malicious, Poisoned(task.train, rows, LabelFlip(len(task.classes))))
    rows = _rows(task, malicious, own, section.kind, seed)
    if section.kind == "cat-map":
        moved = CatMap(int(own.get("iterations", 1)))
        moved(task.train.gather(torch.zeros(1, dtype=torch.long)))  # refuses what is not square
        return Adversary(malicious, Poisoned(task.train, rows, moved))
    white = task.train.white if isinstance(task.train, Images) else None
    trigger = Backdoor(**{key: value for key, value in own.items() if key != "share"}, white=white)
    if not 0 <= trigger.target < len(task.classes):
        raise Incompatible(
            f"attack.target = {trigger.target}: there are {len(task.classes)} classes"
        )
    labels = task.test.labels
    assert labels is not None
    other = task.test_rows[labels[task.test_rows] != trigger.target]
    if not len(other):
        raise Incompatible(
            f"attack.target = {trigger.target}: all test examples are of that class, so there is "
            "none to measure the attack on"
        )
    everywhere = Poisoned(task.test, torch.ones(len(task.test), dtype=torch.bool), trigger)
    train = Poisoned(task.train, rows, trigger)
    return Adversary(malicious, train, triggered=everywhere, triggered_rows=other)


def check_attack(scenario: Scenario) -> None:
    """Refuse what can be refused without data.

    Raises:
        ScenarioError: for a parameter that the attack does not have, a task without classes, or an
            attack on numbers where rankings are sent.
    """
    kind = scenario.attack.kind
    if kind == "none":
        return
    _check_space(kind, find_kind(scenario.adapter.kind).like or scenario.adapter.kind)
    if kind in SHARES:
        check_classes(scenario.task.kind, kind)
    if kind == "cat-map" and scenario.task.kind != "image-classification":
        raise Incompatible(f"attack.kind = 'cat-map': needs images, not {scenario.task.kind}")
    given = scenario.attack.parameters()
    _check_keys(kind, given, attack_keys(kind))
    check_types("attack", CRAFTED.get(kind, _Shared), given)


def attack_keys(kind: str) -> list[str]:
    """The parameters of an attack."""
    if kind in CRAFTED:
        return list(inspect.signature(CRAFTED[kind]).parameters)
    return list(POISONING[kind])


class _Shared:
    """Parameters of attacks on labels and inputs."""

    def __init__(
        self,
        share: Probability = 1.0,
        iterations: PositiveInt = 1,
        target: NonNegativeInt = 0,
        size: PositiveInt = 3,
        token: NonNegativeInt = 0,
    ) -> None:
        self.share, self.iterations = share, iterations
        self.target, self.size, self.token = target, size, token


def _rows(
    task: Task, malicious: list[int], own: dict[str, Any], kind: str, seed: int
) -> torch.Tensor:
    share = float(own.get("share", SHARES[kind]))
    return poisoned_rows(task.train, task.clients, malicious, share, seed)


def _check_space(attack: str, adapter: str) -> None:
    """Refuse attacks on numbers where rankings are sent, and the reverse."""
    if attack in RANK_ATTACKS and adapter != "rank":
        raise Incompatible(
            f"attack.kind = {attack!r}: acts on rankings, which adapter.kind 'rank' sends, not "
            f"{adapter!r}"
        )
    if attack in ATTACKS and adapter == "rank":
        allowed = ", ".join([*SHARES, *RANK_ATTACKS])
        raise Incompatible(
            f"attack.kind = {attack!r}: acts on numbers, and adapter.kind 'rank' sends rankings; "
            f"allowed: {allowed}"
        )


def _check_keys(kind: str, given: dict[str, Any], allowed: list[str]) -> None:
    for key in given:
        if key not in allowed:
            names = ", ".join(["kind", "fraction", "knowledge", *allowed])
            raise Incompatible(f"attack.{key}: unknown key for {kind!r}; allowed: {names}")
