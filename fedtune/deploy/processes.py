"""A client's processes: its resident trainer, started anew when it dies, and its SuperNode."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedtune.runs.processes import Child, flower_environment, free_port, stop_all

PAUSE = 5.0


@dataclass(frozen=True)
class Place:
    """How a client reaches its server.

    Attributes:
        superlink: host:port.
        authority: certificate that vouches for the server.
        key: the client's private key, or None where the server asks for none.
        port: of the SuperNode's own interface to its ClientApps, on this machine only; None: any.
    """

    superlink: str
    authority: Path
    key: Path | None
    port: int | None = None


class ClientProcesses:
    """Trainer and SuperNode of a client.

    Args:
        client: its id.
        settings: its file, as `fedtune deploy trainer` takes it.
        socket: where its trainer listens.
        place: how it reaches its server.
        home: FLWR_HOME of its SuperNode, and the folder of both logs.
        environment: more of it.
    """

    def __init__(
        self,
        client: int,
        settings: Path,
        socket: str,
        place: Place,
        home: Path,
        environment: Mapping[str, str],
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.client, self.settings, self.home = client, settings, home
        self.environment = {**flower_environment(home), **environment}
        self._started = 0.0
        self.trainer = self._start_trainer()
        command = supernode_command(place, client, socket)
        name = f"the SuperNode of client {client}"
        self.supernode = Child(name, command, home / "supernode.log", self.environment)

    def check(self) -> None:
        """Start the trainer anew if it is gone; raise `RunError` if the SuperNode is."""
        if not self.trainer.alive and time.monotonic() - self._started > PAUSE:
            self.trainer = self._start_trainer()
        self.supernode.check()

    def stop(self) -> None:
        """End both."""
        stop_all([self.supernode, self.trainer])

    def _start_trainer(self) -> Child:
        self._started = time.monotonic()
        command = [sys.executable, "-m", "fedtune", "deploy", "trainer", str(self.settings)]
        name = f"the trainer of client {self.client}"
        return Child(name, command, self.home / "trainer.log", self.environment)


def supernode_command(place: Place, client: int, socket: str) -> Sequence[str]:
    """Flower's SuperNode of a client, which finds the trainer at a socket."""
    key = [] if place.key is None else ["--auth-supernode-private-key", str(place.key)]
    return [
        "flower-supernode", "--superlink", place.superlink,
        "--root-certificates", str(place.authority), *key,
        "--host", "127.0.0.1", "--port", str(place.port or free_port()),
        "--node-config", f'client-id={client} trainer="{socket}"',
    ]  # fmt: skip
