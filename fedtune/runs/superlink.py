"""A SuperLink of our own: its own FLWR_HOME and port, installs nothing, ends with its owner."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w

from fedtune.errors import RunError
from fedtune.runs.processes import Child, flower_environment, free_port

POLL, START_PATIENCE, COMMAND_PATIENCE = 0.2, 120.0, 120.0
CONNECTION = "private"
SIMULATION = ("--insecure", "--simulation")


class SuperLink(Child):
    """A SuperLink process on this machine.

    Args:
        home: a folder, its FLWR_HOME.
        options: of `flower-superlink`; by default the Simulation Runtime without TLS.
        authority: the certificate that vouches for it; without one the connection is not encrypted.
        port: to listen on; by default a free one.
    """

    def __init__(
        self,
        home: Path,
        options: Sequence[str] = SIMULATION,
        authority: Path | None = None,
        port: int | None = None,
    ) -> None:
        self.home, self.port = home, port or free_port()
        self.environment = flower_environment(home)
        trust = {"insecure": True} if authority is None else {"root-certificates": str(authority)}
        link = {"address": f"127.0.0.1:{self.port}", **trust}
        settings = {"superlink": {"default": CONNECTION, CONNECTION: link}}
        (home / "config.toml").write_text(tomli_w.dumps(settings), "utf-8")
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--disable-runtime-dependency-installation", *options]
        super().__init__("Flower's SuperLink", command, home / "superlink.log", self.environment)

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

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """What a command of Flower's prints as JSON.

        Raises:
            RunError: if it prints anything else, or takes too long.
        """
        return flwr(arguments, self.environment)

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


def flwr(arguments: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    """What a command of Flower's prints as JSON.

    Raises:
        RunError: if it prints anything else, or takes too long.
    """
    try:
        ran = subprocess.run(
            ["flwr", *arguments, "--format", "json"], env=environment, text=True,
            capture_output=True, check=False, timeout=COMMAND_PATIENCE,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(ran.stdout)
    except subprocess.TimeoutExpired:
        raise RunError(f"flwr {arguments[0]}: no answer in {COMMAND_PATIENCE:.0f} s") from None
    except ValueError:
        said = (ran.stderr or ran.stdout).strip().splitlines()
        raise RunError(f"flwr {arguments[0]}: {said[-1] if said else ran.returncode}") from None
    return found


@contextmanager
def private_superlink() -> Iterator[SuperLink]:
    """A SuperLink with the Simulation Runtime for as long as the context lasts."""
    home = Path(tempfile.mkdtemp(prefix="fedtune-flower-"))
    try:
        link = SuperLink(home)
        try:
            yield link
        finally:
            link.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)
