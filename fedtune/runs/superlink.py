"""A private SuperLink: its own FLWR_HOME and port, installs nothing, ends with its owner."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from fedtune.errors import RunError

POLL, START_PATIENCE, STOP_PATIENCE, COMMAND_PATIENCE = 0.2, 120.0, 15.0, 120.0
CONNECTION = "private"


class SuperLink:
    """A SuperLink process with the Simulation Runtime.

    Args:
        home: an empty folder, its FLWR_HOME.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = _free_port()
        self.environment = _environment(home)
        link = {"address": f"127.0.0.1:{self.port}", "insecure": True}
        settings = {"superlink": {"default": CONNECTION, CONNECTION: link}}
        (home / "config.toml").write_text(tomli_w.dumps(settings), "utf-8")
        self.log = home / "superlink.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--disable-runtime-dependency-installation"]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip

    def wait(self) -> None:
        """Until it listens.

        Raises:
            RunError: if it ends, or takes too long.
        """
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
            lines = self.log.read_text("utf-8", "replace").strip().splitlines()
            raise RunError(f"Flower's SuperLink ended: {lines[-1] if lines else 'it said nothing'}")

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """What a command of Flower's prints as JSON.

        Raises:
            RunError: if it prints anything else, or takes too long.
        """
        try:
            ran = subprocess.run(
                ["flwr", *arguments, "--format", "json"], env=self.environment, text=True,
                capture_output=True, check=False, timeout=COMMAND_PATIENCE,
            )  # fmt: skip
            found: dict[str, Any] = json.loads(ran.stdout)
        except subprocess.TimeoutExpired:
            raise RunError(f"flwr {arguments[0]}: no answer in {COMMAND_PATIENCE:.0f} s") from None
        except ValueError:
            said = (ran.stderr or ran.stdout).strip().splitlines()
            raise RunError(f"flwr {arguments[0]}: {said[-1] if said else ran.returncode}") from None
        return found

    def keep_log(self, path: Path, run_id: str) -> None:
        """Put Flower's own words into a file."""
        with suppress(OSError, subprocess.SubprocessError):
            shutil.copyfile(self.log, path)
            if run_id:
                with path.open("ab") as log:
                    subprocess.run(
                        ["flwr", "log", run_id, CONNECTION, "--show"], env=self.environment,
                        stdout=log, stderr=log, check=False, timeout=COMMAND_PATIENCE,
                    )  # fmt: skip

    def stop(self) -> None:
        """End the process and what it started: the ServerApp, Ray and its workers."""
        with suppress(psutil.NoSuchProcess):
            mine = psutil.Process(self.process.pid)
            family = [*mine.children(recursive=True), mine]
            mine.terminate()
            _, left = psutil.wait_procs(family, STOP_PATIENCE)
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


@contextmanager
def private_superlink() -> Iterator[SuperLink]:
    """A SuperLink for as long as the context lasts."""
    home = Path(tempfile.mkdtemp(prefix="fedtune-flower-"))
    try:
        link = SuperLink(home)
        try:
            yield link
        finally:
            link.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _end_with_parent() -> None:
    """In the new process: end when the one that started it does, even if it was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
