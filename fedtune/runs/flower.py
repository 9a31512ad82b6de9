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

SCENARIO, OUT, RESUME = "scenario", "out", "resume"


def scenario_of(run_config: Mapping[str, Any]) -> Scenario:
    """The scenario under the run-config key `scenario`: the text of one, a file or a name.

    Raises:
        ScenarioError: if it is none of these.
    """
    text = str(run_config.get(SCENARIO, "")).strip()
    if not text:
        raise ScenarioError("run-config key 'scenario' is empty: give a name, a file or the text")
    if "=" not in text:
        return settle_paths(load_scenario(text, {"engine.kind": "flower"}))
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"run-config key 'scenario': not valid TOML ({error})") from None
    return settle_paths(load_scenario(validate(raw), {"engine.kind": "flower"}))


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
