"""Federations of real processes that a test can hurt."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from fedtune.deploy.federation import LocalFederation
from fedtune.deploy.runs import prepared
from fedtune.errors import RunError
from fedtune.runs.directory import RunDirectory
from fedtune.runs.server_files import FAILED
from fedtune.runs.submitting import raise_failure
from fedtune.scenario import load_scenario
from tests.runs.kit import small

PAUSE = 0.2


class Running:
    """A federation and one run on it.

    Args:
        folder: an empty one.
        clients: how many, of which
        started: are started; by default all.
        changes: of the small scenario.
    """

    def __init__(
        self, folder: Path, clients: int, started: list[int] | None = None, **changes
    ) -> None:
        home = folder / "home"
        home.mkdir(parents=True)
        given = {"clients__count": clients, "clients__participation__value": 1.0, **changes}
        scenario = load_scenario("quickstart", small(**given))
        self.scenario, self.directory, self.name = prepared(scenario, folder / "run")
        self.database = folder / "superlink.db"
        self.federation = LocalFederation(home, clients, self.directory.deployment, self.database)
        self.started = started

    def __enter__(self) -> Running:
        self.federation.start(1, self.started)
        return self

    def __exit__(self, *error) -> None:
        with suppress(Exception):
            self.federation.keep_logs("")
        self.federation.stop()

    def submit(self, resume: bool = False) -> str:
        (self.federation.home / FAILED).unlink(missing_ok=True)
        return self.federation.submit(self.scenario, self.directory.path, self.name, resume)

    def until(self, done: Callable[[], bool], seconds: float = 150.0) -> None:
        """Wait, with the clients looked after, until something holds.

        Raises:
            TimeoutError: if it does not in time.
            RunError: what the ServerApp said went wrong.
        """
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not in {seconds:.0f} s; {self.lines()}")
            raise_failure(self.federation.home / FAILED)
            with suppress(RunError):
                self.federation.check()
            time.sleep(PAUSE)

    def until_round(self, number: int, seconds: float = 150.0) -> None:
        self.until(lambda: len(self.directory.metrics) >= number, seconds)

    def until_end(self, seconds: float = 240.0) -> RunDirectory:
        self.until(lambda: bool(self.directory.summary), seconds)
        return self.directory

    def lines(self) -> list[tuple[int, list[int]]]:
        return [(line["round"], line["client_ids"]) for line in self.directory.metrics]


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started, at once."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                os.kill(process.pid, signal.SIGKILL)


def server_app(link_pid: int) -> psutil.Process:
    """The ServerApp's process under a SuperLink."""
    for process in psutil.Process(link_pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("flwr-serverapp" in part for part in process.cmdline()):
                return process
    raise LookupError("no ServerApp runs")
