"""Processes of Flower's and ours that end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path

import psutil

from fedtune.errors import RunError

STOP_PATIENCE = 15.0


class Child:
    """A process in a session of its own, whose words go to a file.

    Args:
        name: what it is called in messages.
        command: its program and arguments.
        log: the file, added to.
        environment: of the process.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name, self.log = name, log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                list(command), env=dict(environment), stdin=subprocess.DEVNULL, stdout=file,
                stderr=file, start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def check(self) -> None:
        """Raise `RunError`, with its last line, if it is gone."""
        if not self.alive:
            lines = self.log.read_text("utf-8", "replace").strip().splitlines()
            raise RunError(f"{self.name} ended: {lines[-1] if lines else 'it said nothing'}")

    def stop(self) -> None:
        """End the process and all that it started."""
        stop_all([self])


def stop_all(children: Sequence[Child]) -> None:
    """End processes and all that they started, together."""
    family: list[psutil.Process] = []
    for child in children:
        with suppress(psutil.NoSuchProcess):
            mine = psutil.Process(child.process.pid)
            family += [*mine.children(recursive=True), mine]
            mine.terminate()
    _, left = psutil.wait_procs(family, STOP_PATIENCE)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for child in children:
        child.process.wait()


def end_with_parent() -> None:
    """In a new process: end when the one that started it does, even if it was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def flower_environment(home: Path | None = None) -> dict[str, str]:
    """Flower's programs on the path, fedtune importable as here, nothing phones home.

    Args:
        home: the FLWR_HOME; by default the user's.
    """
    mine = Path(str(resources.files("fedtune"))).parent
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    paths = [str(mine), os.environ.get("PYTHONPATH", "")]
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {
        **kept,
        "PATH": os.pathsep.join(places),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        **({} if home is None else {"FLWR_HOME": str(home)}),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
