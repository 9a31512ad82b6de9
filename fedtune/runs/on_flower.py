"""`engine.kind = "flower"`: a run on Flower's Simulation Runtime, followed in its run directory.

The app that is submitted names fedtune's installed ServerApp and ClientApp, so the bundle holds no
code of ours. The ServerApp tells how it goes through two small files in the SuperLink's home.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import torch

from fedtune.errors import RunError, ScenarioError
from fedtune.runs.directory import RunDirectory
from fedtune.runs.flower import OUT, REPORT, RESUME, SCENARIO
from fedtune.runs.observing import Observer
from fedtune.runs.server_files import OWNER
from fedtune.runs.submitting import Ended, follow, submit
from fedtune.runs.superlink import CONNECTION, SuperLink, private_superlink
from fedtune.scenario import Scenario, dump_scenario

CLIENT_APP = "fedtune.runs.client_app:app"
SERVER_APP = "fedtune.runs.server_app:app"


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
    (link.home / OWNER).write_text(str(os.getpid()), "ascii")
    config = {
        SCENARIO: dump_scenario(scenario), OUT: str(path), RESUME: resume, REPORT: str(link.home),
    }  # fmt: skip
    link.wait()
    apps = {"serverapp": SERVER_APP, "clientapp": CLIENT_APP}
    options = ("--federation-config", _federation(scenario))
    return submit(link.home, apps, config, link.environment, CONNECTION, options)


def _follow(link: SuperLink, run_id: str, directory: RunDirectory, observer: Observer) -> None:
    """Show the run until its summary is there."""
    ended = Ended(run_id, CONNECTION, link.environment)

    def watch() -> None:
        link.check()
        ended.check(link.home, directory)

    follow(link.home, directory, observer, watch)


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
