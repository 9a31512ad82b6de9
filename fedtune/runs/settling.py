"""A scenario as a run keeps it: nothing left to the folder or the defaults of the moment."""

from __future__ import annotations

from pathlib import Path

from fedtune.adapters.kinds import find_kind
from fedtune.runs.participations import planned_rounds, scheduled_rounds
from fedtune.runs.strategies import adapter_kind, finds_frame, frame_source
from fedtune.scenario.schema import Scenario


def settle_paths(scenario: Scenario) -> Scenario:
    """The scenario with its adapter kind and its lengths settled and its local paths absolute."""
    return settle_rounds(settle_parts(scenario))


def settle_parts(scenario: Scenario) -> Scenario:
    """The scenario with all settled but what follows from `run.rounds`, which may still change."""
    settled = with_absolute_paths(scenario)
    settled.adapter.kind = adapter_kind(scenario)
    if find_kind(settled.adapter.kind).unscaled:
        settled.adapter.alpha = float(settled.adapter.rank)
    if settled.adapter.kind == "lora-sb":
        settled.adapter.init = frame_source(scenario)  # type: ignore[assignment]
    return settled


def settle_rounds(scenario: Scenario) -> Scenario:
    """The scenario with the rounds that its privacy and schedules are made for.

    A run that is lengthened keeps them.
    """
    local, privacy = scenario.local, scenario.privacy
    if privacy.mechanism != "none":
        privacy = privacy.model_copy(update={"rounds": planned_rounds(scenario)})
    if _has_length(scenario):
        local = local.model_copy(update={"schedule_rounds": scheduled_rounds(scenario)})
    return scenario.model_copy(update={"local": local, "privacy": privacy})


def _has_length(scenario: Scenario) -> bool:
    """Whether anything but the end of a run follows from how many rounds it has."""
    if scenario.local.round_schedule in ("linear", "cosine"):
        return True
    return scenario.adapter.init_step == "auto" and finds_frame(scenario)


def with_absolute_paths(scenario: Scenario) -> Scenario:
    """A copy of the scenario that can be read from another folder."""
    raw = scenario.model_copy(deep=True)
    for key in ("base", "data", "test"):
        value = getattr(raw.task, key)
        if value is not None and not value.startswith("builtin:"):
            path = Path(value).expanduser()
            if path.exists():
                setattr(raw.task, key, str(path.resolve()))
    if (file := raw.clients.participation.file) is not None:
        raw.clients.participation.file = str(Path(file).expanduser().resolve())
    if (file := raw.privacy.ledger) is not None:
        raw.privacy.ledger = str(Path(file).expanduser().resolve())
    if (file := raw.faults.trace) is not None:
        raw.faults.trace = str(Path(file).expanduser().resolve())
    return raw
