"""What fedtune's ServerApp and ClientApp read from Flower's run configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Message, MessageType

from fedtune.apps.opening import OPENING
from fedtune.apps.received import message_round
from fedtune.apps.store import KEPT, ClientStore, FileStore
from fedtune.errors import ScenarioError
from fedtune.runs.settling import settle_paths
from fedtune.runs.strategies import what_clients_keep
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.loading import validate

SCENARIO, OUT, RESUME, REPORT = "scenario", "out", "resume", "report"
FEDERATION, NODES = "federation", "nodes"


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


def check_out(scenario: Scenario, run_config: Mapping[str, Any]) -> None:
    """Raise `ScenarioError` if clients would not know where to keep what they keep."""
    out = str(run_config.get(OUT, ""))
    private = scenario.privacy.mechanism == "example" and scenario.privacy.ledger is None
    why = "privacy.mechanism = 'example'" if private else what_clients_keep(scenario)
    if why and not Path(out).is_absolute():
        raise ScenarioError(
            f"{why}: clients keep it in the run directory; give the run-config key 'out' an "
            f"absolute path, not {out!r}"
        )


def store_of(scenario: Scenario, run_config: Mapping[str, Any], message: Message) -> ClientStore:
    """Where a client keeps its state: files of the run directory, which outlive its process.

    Training in a round starts from what held before it, evaluating after a round sees it.
    """
    folder = Path(str(run_config.get(OUT, ""))) / KEPT
    return store_in(folder, scenario, message)


def store_in(folder: Path, scenario: Scenario, message: Message) -> ClientStore:
    """What a client kept in a folder, as far as a message may see it."""
    trains = message.metadata.message_type in (MessageType.TRAIN, OPENING)
    before = message_round(message) + (0 if trains else 1)
    return FileStore(folder, before, scenario.run.checkpoint_every)
