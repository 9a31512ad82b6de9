"""A client's processes: its resident trainer and its SuperNode, started anew when they die."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedtune.runs.processes import Child, flower_environment, free_port, stop_all

PAUSE, STAYS, MOST = 5.0, 60.0, 12


@dataclass(frozen=True)
class Place:
    """How a client reaches its server.

    Attributes:
        superlink: host:port.
        authority: certificate that vouches for the server.
        key: the client's private key, or None where the server asks for none.
    """

    superlink: str
    authority: Path
    key: Path | None


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
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.client, self.home = client, home
        environment = {**flower_environment(home), **environment}
        self.trainer = Kept(
            f"the trainer of client {client}",
            [sys.executable, "-m", "fedtune", "deploy", "trainer", str(settings)],
            home / "trainer.log",
            environment,
        )
        self.supernode = Kept(
            f"the SuperNode of client {client}",
            supernode_command(place, client, socket),
            home / "supernode.log",
            environment,
        )

    def check(self) -> None:
        """Start anew what is gone; raise `RunError` for what does not stay."""
        self.trainer.check()
        self.supernode.check()

    @property
    def children(self) -> list[Child]:
        """Both, as they run now."""
        return [self.supernode.child, self.trainer.child]

    def stop(self) -> None:
        """End both."""
        stop_all(self.children)


class Kept:
    """A process that is started anew when it ends, with pauses; after many times in vain no more.

    Flower turns a SuperNode that was killed away until its last heartbeats are forgotten, a minute.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self._make = lambda: Child(name, command, log, environment)
        self.vain = 0
        self._started = time.monotonic()
        self.child = self._make()

    def check(self) -> None:
        """Start it anew if it is gone.

        Raises:
            RunError: with its last line, if that was in vain too often.
        """
        lived = time.monotonic() - self._started
        if self.child.alive:
            self.vain = 0 if lived > STAYS else self.vain
            return
        if self.vain >= MOST:
            self.child.check()
        if lived > PAUSE:
            self.vain += 1
            self._started = time.monotonic()
            self.child = self._make()


def supernode_command(place: Place, client: int, socket: str) -> Sequence[str]:
    """Flower's SuperNode of a client, which finds the trainer at a socket."""
    key = [] if place.key is None else ["--auth-supernode-private-key", str(place.key)]
    return [
        "flower-supernode", "--superlink", place.superlink,
        "--root-certificates", str(place.authority), *key,
        "--host", "127.0.0.1", "--port", str(free_port()),
        "--node-config", f'client-id={client} trainer="{socket}"',
    ]  # fmt: skip
