"""What fedtune's ServerApp and ClientApp read from Flower's run configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, MessageType

from fedtune.apps.clients import message_round
from fedtune.apps.store import KEPT, ClientStore, ContextStore, FileStore
from fedtune.errors import ScenarioError
from fedtune.runs.build import settle_paths
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.loading import validate

SCENARIO, OUT, RESUME, REPORT = "scenario", "out", "resume", "report"


def scenario_of(run_config: Mapping[str, Any]) -> Scenario:
    """The scenario of a run configuration.

    That of the run directory where a run is resumed; else what the key `scenario` holds: the text
    of one, a file or a name.

    Raises:
        ScenarioError: if it is none of these.
    """
    text, out = (str(run_config.get(key, "")).strip() for key in (SCENARIO, OUT))
    if run_config.get(RESUME, False):
        return _on_flower(load_scenario(Path(out) / "scenario.toml"))
    if not text:
        raise ScenarioError("run-config key 'scenario' is empty: give a name, a file or the text")
    if "\n" not in text and ("=" not in text or Path(text).is_file()):
        return _on_flower(load_scenario(text))
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"run-config key 'scenario': not valid TOML ({error})") from None
    return _on_flower(validate(raw))


def _on_flower(scenario: Scenario) -> Scenario:
    return settle_paths(load_scenario(scenario, {"engine.kind": "flower"}))


def store_of(scenario: Scenario, context: Context, message: Message) -> ClientStore:
    """Where a client keeps its state: files of the run directory, where its place is known.

    Training in a round starts from what held before it, evaluating after a round sees it.
    """
    out = str(context.run_config.get(OUT, ""))
    if not out:
        return ContextStore(context)
    trains = message.metadata.message_type == MessageType.TRAIN
    before = message_round(message) + (0 if trains else 1)
    return FileStore(Path(out) / KEPT, before, scenario.run.checkpoint_every)
