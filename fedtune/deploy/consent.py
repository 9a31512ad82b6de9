"""What a client lets a server ask for, and what of a server's scenario it follows."""

from __future__ import annotations

from typing import Any

from fedtune.adapters.kinds import find_kind
from fedtune.deploy.digest import base_digest
from fedtune.deploy.settings import ClientSettings
from fedtune.errors import ClientFailure
from fedtune.runs.settling import settle_paths
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.trouble import AttackSection, FaultsSection

COLUMNS = ("image", "text", "text_pair", "label", "instruction", "response")


class Refused(ClientFailure):
    """A client that does not do what a server asks; nothing is trained."""

    def __init__(self, client: int, reason: str) -> None:
        super().__init__(client, "consent", reason)


def check_consent(scenario: Scenario, settings: ClientSettings) -> None:
    """Refuse what goes beyond a client's settings.

    Raises:
        Refused: with the key, what was asked and what is allowed.
    """
    for reason in (_kind(scenario, settings), _base(scenario, settings), _steps(scenario, settings),
                   _privacy(scenario, settings)):  # fmt: skip
        if reason is not None:
            raise Refused(settings.client, reason)


def check_steps(steps: int, settings: ClientSettings) -> None:
    """Refuse more steps in a round than a client allows.

    Raises:
        Refused: saying how many.
    """
    most = settings.accepts.steps
    if most is not None and steps > most:
        raise Refused(
            settings.client, f"a round of {steps} optimiser steps; accepts.steps allows {most}"
        )


def _kind(scenario: Scenario, settings: ClientSettings) -> str | None:
    kinds, kind = settings.accepts.adapters, scenario.adapter.kind
    find_kind(kind)
    if kinds is not None and kind not in kinds:
        return f"adapter.kind = {kind!r}; accepts.adapters allows: {', '.join(kinds)}"
    return None


def _base(scenario: Scenario, settings: ClientSettings) -> str | None:
    accepted = settings.accepts.base
    if accepted is None:
        return None
    found = base_digest(settings.base or scenario.task.base)
    if found != accepted:
        return f"task.base = {scenario.task.base!r} has another digest than accepts.base"
    return None


def _steps(scenario: Scenario, settings: ClientSettings) -> str | None:
    if scenario.local.steps is not None:
        check_steps(scenario.local.steps, settings)
    return None


def _privacy(scenario: Scenario, settings: ClientSettings) -> str | None:
    own, asked = settings.privacy, scenario.privacy
    if own.mechanism == "none":
        return None
    assert own.epsilon is not None
    if asked.mechanism != own.mechanism:
        return f"privacy.mechanism = {asked.mechanism!r}; this client allows: {own.mechanism!r}"
    if asked.deterministic_randomness:
        return "privacy.deterministic_randomness = true protects nobody"
    if asked.public_counts and not own.public_counts:
        return "privacy.public_counts = true; this client does not tell how many examples it has"
    if asked.epsilon is not None and asked.epsilon > own.epsilon:
        return f"privacy.epsilon = {asked.epsilon:g}; this client allows {own.epsilon:g}"
    if asked.delta > own.delta:
        return f"privacy.delta = {asked.delta:g}; this client allows {own.delta:g}"
    return None


def own_scenario(scenario: Scenario, settings: ClientSettings) -> Scenario:
    """What a client makes of a server's scenario: its own data, base, device and ledger.

    No path of the scenario's is read or written here but those of `data.dealt`, for trials.
    """
    changes: dict[str, Any] = {
        "engine.kind": "cohort",
        "engine.device": settings.device,
        "engine.threads": settings.threads,
        "engine.cohort_size": 1,
        "run.trackers": [],
        "privacy.ledger": f"{settings.store}/ledger.jsonl",
        "task.base": settings.base or scenario.task.base,
    }
    data = settings.data
    if data.file is not None:
        changes |= {"task.data": data.file, "task.test": data.file, "task.subset": None}
        changes |= {"task.train_examples": None, "task.server_examples": 0}
        named = {name: getattr(data, name) for name in COLUMNS}
        changes |= {f"task.{name}": column for name, column in named.items() if column is not None}
        if scenario.clients.participation.file is not None:
            changes["clients.participation"] = {"kind": "fraction", "value": 1.0}
    if scenario.privacy.mechanism == "none":
        del changes["privacy.ledger"]
    plain = scenario.model_copy(
        update={"faults": FaultsSection(), "attack": AttackSection(), "compare": None}
    )
    return settle_paths(load_scenario(plain, changes))
