"""A run on Flower's Simulation Runtime: a private SuperLink, a thin app, and its run directory.

The app names fedtune's installed ServerApp and ClientApp, so the bundle holds no code of ours. The
SuperLink has a FLWR_HOME and a port of its own, installs nothing, and ends with the run.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tomli_w
import torch

from fedtune.errors import RunError, ScenarioError
from fedtune.runs.directory import RunDirectory
from fedtune.runs.flower import OUT, RESUME, SCENARIO
from fedtune.runs.loop import Observer, Started
from fedtune.runs.server_files import FAILED, STARTED
from fedtune.scenario import Scenario, dump_scenario

POLL, STATUS_EVERY, START_PATIENCE = 0.2, 20.0, 120.0
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
                "components": {
                    "serverapp": "fedtune.runs.server_app:app",
                    "clientapp": "fedtune.runs.client_app:app",
                },
                "config": {SCENARIO: "", OUT: "", RESUME: False},
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
    path = path.resolve()
    for name in (FAILED, STARTED):
        (path / name).unlink(missing_ok=True)
    done = len(RunDirectory(path).metrics)
    (path / "summary.json").unlink(missing_ok=True)
    with _superlink() as link:
        link.submit(scenario, path, resume)
        try:
            link.follow(RunDirectory(path), done, observer)
        except RunError:
            link.keep_log(path)
            raise
    (path / STARTED).unlink(missing_ok=True)
    return RunDirectory.open(path)


class _SuperLink:
    """A SuperLink process of ours, its home and its environment."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = _free_port()
        self.environment = _environment(home)
        (home / "config.toml").write_text(_connection(self.port), "utf-8")
        self.log = home / "superlink.log"
        self.run_id = ""
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--disable-runtime-dependency-installation"]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Until it listens."""
        deadline = time.monotonic() + START_PATIENCE
        while time.monotonic() < deadline:
            self.check()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(POLL)
        raise RunError(f"Flower's SuperLink did not start within {START_PATIENCE:.0f} s")

    def check(self) -> None:
        """Raise `RunError` if it is gone."""
        if self.process.poll() is not None:
            raise RunError(f"Flower's SuperLink ended: {_last_line(self.log)}")

    def submit(self, scenario: Scenario, path: Path, resume: bool) -> None:
        """Bundle the thin app and start the run."""
        app = self.home / "app"
        app.mkdir()
        (app / "pyproject.toml").write_text(tomli_w.dumps(APP), "utf-8")
        (app / "LICENSE").write_text("Apache-2.0\n", "utf-8")
        config = {SCENARIO: dump_scenario(scenario), OUT: str(path), RESUME: resume}
        (self.home / "run.toml").write_text(tomli_w.dumps(config), "utf-8")
        self.wait()
        found = self.flwr(
            "run", str(app), "private", "--run-config", str(self.home / "run.toml"),
            "--federation-config", _federation(scenario),
        )  # fmt: skip
        if not found.get("success"):
            raise RunError(f"flwr run: {found.get('error-message') or found}")
        self.run_id = str(found["run-id"])

    def follow(self, directory: RunDirectory, done: int, observer: Observer) -> None:
        """Show the run until its summary is there."""
        started, looked = False, time.monotonic()
        while True:
            over = bool(directory.summary)
            facts = directory.path / STARTED
            if not started and facts.exists():
                observer.started(Started(**json.loads(facts.read_text("utf-8"))))
                started = True
            lines = directory.metrics if started else []
            for line in lines[done:]:
                observer.finished_round(line)
            done = max(done, len(lines))
            if over:
                return
            _raise_failure(directory.path / FAILED)
            self.check()
            if time.monotonic() - looked > STATUS_EVERY:
                self._check_status(directory)
                looked = time.monotonic()
            time.sleep(POLL)

    def _check_status(self, directory: RunDirectory) -> None:
        found = self.flwr("list", "private", "--run-id", self.run_id)
        run: dict[str, Any] = next(iter(found.get("runs", [])), {})
        if str(run.get("status", "")).startswith("finished") and not directory.summary:
            _raise_failure(directory.path / FAILED)
            raise RunError(f"Flower ended the run: {run.get('status-details') or run['status']}")

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """What a command of Flower's prints as JSON."""
        ran = subprocess.run(
            ["flwr", *arguments, "--format", "json"],
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        try:
            found: dict[str, Any] = json.loads(ran.stdout)
        except ValueError:
            said = (ran.stderr or ran.stdout).strip().splitlines()
            raise RunError(f"flwr {arguments[0]}: {said[-1] if said else ran.returncode}") from None
        return found

    def keep_log(self, path: Path) -> None:
        """Put Flower's own words into the run directory."""
        path.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.log, path / "flower.log")
        if self.run_id:
            command = ["flwr", "log", self.run_id, "private", "--show"]
            with (path / "flower.log").open("ab") as log:
                subprocess.run(
                    command, env=self.environment, stdout=log, stderr=log, check=False, timeout=60
                )

    def stop(self) -> None:
        """End the process and what it started."""
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def _superlink() -> Iterator[_SuperLink]:
    home = Path(tempfile.mkdtemp(prefix="fedtune-flower-"))
    link = _SuperLink(home)
    try:
        yield link
    finally:
        link.stop()
        shutil.rmtree(home, ignore_errors=True)


def _environment(home: Path) -> dict[str, str]:
    """Flower's programs on the path, fedtune importable as here, nothing phones home."""
    mine = Path(str(resources.files("fedtune"))).parent
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    paths = [str(mine), os.environ.get("PYTHONPATH", "")]
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {
        **kept,
        "PATH": os.pathsep.join(places),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _connection(port: int) -> str:
    link = {"address": f"127.0.0.1:{port}", "insecure": True}
    return tomli_w.dumps({"superlink": {"default": "private", "private": link}})


def _federation(scenario: Scenario) -> str:
    workers = scenario.engine.workers
    count = workers if isinstance(workers, int) else os.cpu_count() or 1
    count = min(count, scenario.clients.count)
    settings = {
        "num-supernodes": scenario.clients.count,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": count,
    }
    text = " ".join(f"{key}={value}" for key, value in settings.items())
    if scenario.engine.device != "cpu" and torch.cuda.is_available():
        text += f" client-resources-num-gpus={torch.cuda.device_count() / count}"
    return text


def _raise_failure(file: Path) -> None:
    if not file.exists():
        return
    found = json.loads(file.read_text("utf-8"))
    file.unlink()
    with suppress(OSError):
        file.parent.rmdir()
    raise (ScenarioError if found["kind"] == "ScenarioError" else RunError)(found["error"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
