"""Submitting a run to a SuperLink, and following it in its run directory.

The app that is submitted names fedtune's installed apps, so the bundle holds no code of ours. The
ServerApp tells how it goes through two small files in a folder of the one that submitted it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fedtune.errors import RunError, ScenarioError
from fedtune.runs.directory import RunDirectory
from fedtune.runs.observing import Observer, Started
from fedtune.runs.server_files import FAILED, STARTED
from fedtune.runs.superlink import POLL, flwr

STATUS_EVERY = 20.0
PROJECT = {
    "name": "fedtune-run",
    "version": "0.0.0",
    "license": {"file": "LICENSE"},
    "dependencies": ["flwr>=1.41"],
}


def submit(
    folder: Path,
    apps: Mapping[str, str],
    config: Mapping[str, Any],
    environment: dict[str, str],
    connection: str,
    options: Sequence[str] = (),
) -> str:
    """Bundle an app without code and start a run; gives Flower's id of it.

    Args:
        folder: for the app and its configuration.
        apps: `module:attribute` of `serverapp` and `clientapp`, installed where they run.
        config: the run configuration.
        environment: of Flower's commands; its FLWR_HOME knows the connection.
        connection: name of the SuperLink there.
        options: more of `flwr run`'s.

    Raises:
        RunError: if Flower does not take it.
    """
    app = folder / "app"
    app.mkdir(exist_ok=True)
    defaults = {key: type(value)() for key, value in config.items()}
    flower = {"publisher": "fedtune", "components": dict(apps), "config": defaults}
    text = tomli_w.dumps({"project": PROJECT, "tool": {"flwr": {"app": flower}}})
    (app / "pyproject.toml").write_text(text, "utf-8")
    (app / "LICENSE").write_text("Apache-2.0\n", "utf-8")
    (folder / "run.toml").write_text(tomli_w.dumps(dict(config)), "utf-8")
    arguments = ["run", str(app), connection, "--run-config", str(folder / "run.toml"), *options]
    found = flwr(arguments, environment)
    if not found.get("success"):
        raise RunError(f"flwr run: {found.get('error-message') or found}")
    return str(found["run-id"])


def follow(
    folder: Path, directory: RunDirectory, observer: Observer, watch: Callable[[], None]
) -> None:
    """Show a run until its summary is there.

    Args:
        folder: where the ServerApp reports to.
        watch: raises when whatever the run needs is gone.
    """
    facts, shown = folder / STARTED, None
    while True:
        over = shown is not None and bool(directory.summary)
        if shown is None and facts.exists():
            started = Started(**json.loads(facts.read_text("utf-8")))
            shown = started.first_round - 1
            observer.started(started)
        for line in directory.metrics[shown:] if shown is not None else []:
            observer.finished_round(line)
            shown = line["round"]
        if over:
            return
        raise_failure(folder / FAILED)
        watch()
        time.sleep(POLL)


def raise_failure(file: Path) -> None:
    """Raise what the ServerApp said that went wrong, if it did."""
    if file.exists():
        found = json.loads(file.read_text("utf-8"))
        raise (ScenarioError if found["kind"] == "ScenarioError" else RunError)(found["error"])


class Ended:
    """Asks Flower now and then whether it has ended a run.

    Args:
        run_id: Flower's.
        connection: name of the SuperLink.
        environment: of Flower's commands.
    """

    def __init__(self, run_id: str, connection: str, environment: dict[str, str]) -> None:
        self.run_id, self.connection, self.environment = run_id, connection, environment
        self._looked = time.monotonic()

    def check(self, folder: Path, directory: RunDirectory) -> None:
        """Raise `RunError` if it has, and the run has no summary.

        Args:
            folder: where the ServerApp reports to.
        """
        if time.monotonic() - self._looked <= STATUS_EVERY:
            return
        found = flwr(["list", self.connection, "--run-id", self.run_id], self.environment)
        self._looked = time.monotonic()
        run: dict[str, Any] = next(iter(found.get("runs", [])), {})
        if str(run.get("status", "")).startswith("finished") and not directory.summary:
            raise_failure(folder / FAILED)
            raise RunError(f"Flower ended the run: {run.get('status-details') or run['status']}")
