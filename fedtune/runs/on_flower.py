"""`engine.kind = "flower"`: a run on Flower's Simulation Runtime, followed in its run directory.

The app that is submitted names fedtune's installed ServerApp and ClientApp, so the bundle holds no
code of ours. The ServerApp tells how it goes through two small files in the SuperLink's home.
"""

from __future__ import annotations

import json
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tomli_w
import torch

from fedtune.errors import RunError, ScenarioError
from fedtune.runs.directory import RunDirectory
from fedtune.runs.flower import OUT, REPORT, RESUME, SCENARIO
from fedtune.runs.loop import Observer, Started
from fedtune.runs.server_files import FAILED, OWNER, STARTED
from fedtune.runs.superlink import CONNECTION, POLL, SuperLink, private_superlink
from fedtune.scenario import Scenario, dump_scenario

STATUS_EVERY = 20.0
COMPONENTS = {
    "serverapp": "fedtune.runs.server_app:app",
    "clientapp": "fedtune.runs.client_app:app",
}
APP = {
    "project": {
        "name": "fedtune-run",
        "version": "0.0.0",
        "license": {"file": "LICENSE"},
        "dependencies": ["flwr>=1.41"],
    },
    "tool": {
        "flwr": {
            "app": {
                "publisher": "fedtune",
                "components": COMPONENTS,
                "config": {SCENARIO: "", OUT: "", RESUME: False, REPORT: ""},
            }
        }
    },
}


def run_on_flower(
    scenario: Scenario, path: Path, observer: Observer, resume: bool = False
) -> RunDirectory:
    """Run a scenario on Flower's Simulation Runtime with Ray.

    Args:
        scenario: settled.
        path: the run directory, made by the ServerApp; or one to go on with.
        observer: shows the run while it goes on.
        resume: whether it goes on.

    Raises:
        ScenarioError: if Ray is absent, or for what the ServerApp finds before it trains.
        RunError: if the run fails; `flower.log` in the run directory says more.
    """
    if find_spec("ray") is None:
        raise ScenarioError(
            "engine.kind = 'flower': needs Ray; pip install 'fedtune[flower]', or use 'cohort'"
        )
    directory = RunDirectory(path.resolve())
    run_id = ""
    with private_superlink() as link:
        try:
            run_id = _submit(link, scenario, directory.path, resume)
            _follow(link, run_id, directory, observer)
        except RunError:
            if directory.path.is_dir():
                link.keep_log(directory.path / "flower.log", run_id)
            raise
    return RunDirectory.open(path)


def _submit(link: SuperLink, scenario: Scenario, path: Path, resume: bool) -> str:
    """Bundle the thin app and start the run; gives Flower's id of it."""
    app = link.home / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(tomli_w.dumps(APP), "utf-8")
    (app / "LICENSE").write_text("Apache-2.0\n", "utf-8")
    (link.home / OWNER).write_text(str(os.getpid()), "ascii")
    config = {
        SCENARIO: dump_scenario(scenario), OUT: str(path), RESUME: resume, REPORT: str(link.home),
    }  # fmt: skip
    (link.home / "run.toml").write_text(tomli_w.dumps(config), "utf-8")
    link.wait()
    found = link.flwr(
        "run", str(app), CONNECTION, "--run-config", str(link.home / "run.toml"),
        "--federation-config", _federation(scenario),
    )  # fmt: skip
    if not found.get("success"):
        raise RunError(f"flwr run: {found.get('error-message') or found}")
    return str(found["run-id"])


def _follow(link: SuperLink, run_id: str, directory: RunDirectory, observer: Observer) -> None:
    """Show the run until its summary is there."""
    facts, looked = link.home / STARTED, time.monotonic()
    shown: int | None = None
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
        _raise_failure(link.home / FAILED)
        link.check()
        if time.monotonic() - looked > STATUS_EVERY:
            _check_status(link, run_id, directory)
            looked = time.monotonic()
        time.sleep(POLL)


def _check_status(link: SuperLink, run_id: str, directory: RunDirectory) -> None:
    found = link.flwr("list", CONNECTION, "--run-id", run_id)
    run: dict[str, Any] = next(iter(found.get("runs", [])), {})
    if str(run.get("status", "")).startswith("finished") and not directory.summary:
        _raise_failure(link.home / FAILED)
        raise RunError(f"Flower ended the run: {run.get('status-details') or run['status']}")


def _federation(scenario: Scenario) -> str:
    """As many SuperNodes as clients; a Ray actor for each of `engine.workers`."""
    workers, clients = scenario.engine.workers, scenario.clients.count
    count = min(workers if isinstance(workers, int) else os.cpu_count() or 1, clients)
    settings: dict[str, float] = {
        "num-supernodes": clients,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": count,
    }
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cards and scenario.engine.device != "cpu":
        settings["client-resources-num-gpus"] = 1.0 / -(-count // cards)
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _raise_failure(file: Path) -> None:
    if file.exists():
        found = json.loads(file.read_text("utf-8"))
        raise (ScenarioError if found["kind"] == "ScenarioError" else RunError)(found["error"])
