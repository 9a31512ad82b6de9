"""`fedtune deploy up`: a whole federation on this machine, each part a process of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from fedtune.deploy.certificates import (
    AUTHORITY,
    SERVER,
    SERVER_KEY,
    make_certificates,
    make_client_keys,
)
from fedtune.deploy.processes import ClientProcesses, Place
from fedtune.deploy.runs import Asked, opened, prepared, register
from fedtune.errors import RunError, ScenarioError
from fedtune.runs.directory import RunDirectory
from fedtune.runs.observing import Observer
from fedtune.runs.processes import stop_all
from fedtune.runs.submitting import follow
from fedtune.runs.superlink import CONNECTION, SuperLink
from fedtune.scenario import Scenario
from fedtune.scenario.task import CLIENTS

HOSTS = ("127.0.0.1", "localhost")


class LocalFederation:
    """A SuperLink with TLS and authentication, and a trainer and a SuperNode for each client.

    Args:
        home: a folder that goes with it: keys, certificates, sockets, Flower's own files.
        clients: how many.
        kept: a folder that stays: the clients' stores, settings and logs.
        database: file of the SuperLink's state; by default it is in memory.
    """

    def __init__(self, home: Path, clients: int, kept: Path, database: Path | None = None) -> None:
        self.home, self.kept = home, kept
        keys = home / "keys"
        make_certificates(keys, HOSTS)
        make_client_keys(keys, [str(client) for client in range(clients)])
        self.options = [
            "--ssl-ca-certfile", str(keys / AUTHORITY), "--ssl-certfile", str(keys / SERVER),
            "--ssl-keyfile", str(keys / SERVER_KEY), "--enable-supernode-auth",
        ]  # fmt: skip
        if database is not None:
            self.options += ["--database", str(database)]
        self.link = SuperLink(home, self.options, keys / AUTHORITY)
        self.clients: dict[int, ClientProcesses] = {}
        self.nodes: dict[int, int] = {}
        self.registered = range(clients)

    def start(self, threads: int, started: Sequence[int] | None = None) -> None:
        """Register every client's key and start its processes.

        Args:
            threads: of torch, in each trainer.
            started: the clients whose processes are started; None: all.

        Raises:
            RunError: if the SuperLink does not start or takes no key.
        """
        self.link.wait()
        for client in self.registered:
            key = self.home / "keys" / f"{client}.pub"
            self.nodes[client] = register(key, CONNECTION, self.link.environment)
            if started is None or client in started:
                self.start_client(client, threads)

    def start_client(self, client: int, threads: int = 1) -> None:
        """Start the processes of one client."""
        keys, folder = self.home / "keys", self.kept / f"client-{client}"
        socket = str(self.home / f"{client}.sock")
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "client": client, "socket": socket, "store": str(folder / "store"),
            "threads": threads, "data": {"dealt": True},
        }  # fmt: skip
        file = folder / "client.toml"
        file.write_text(tomli_w.dumps(settings), "utf-8")
        place = Place(f"127.0.0.1:{self.link.port}", keys / AUTHORITY, keys / str(client))
        flower = self.home / f"client-{client}"
        self.clients[client] = ClientProcesses(
            client, file, socket, place, flower, {"OMP_NUM_THREADS": str(threads)}
        )

    def check(self) -> None:
        """Raise `RunError` if the SuperLink is gone, or every client for good."""
        self.link.check()
        gone: list[RunError] = []
        for one in self.clients.values():
            try:
                one.check()
            except RunError as error:
                gone.append(error)
        if gone and len(gone) == len(self.clients):
            raise gone[0]

    def submit(self, scenario: Scenario, path: Path, federation: str, resume: bool) -> str:
        """Start a run; gives Flower's id of it."""
        asked = Asked(scenario, path, federation, self.nodes, resume)
        return asked.submit(self.home, CONNECTION, self.link.environment)

    def keep_logs(self, run_id: str) -> None:
        """Put all processes' words beside the run."""
        self.link.keep_log(self.kept / "superlink.log", run_id)
        for client, one in self.clients.items():
            for log in one.home.glob("*.log"):
                shutil.copyfile(log, self.kept / f"client-{client}" / log.name)

    def stop(self) -> None:
        """End everything."""
        clients = [child for one in self.clients.values() for child in one.children]
        stop_all([*clients, self.link])


@contextmanager
def local_federation(clients: int, kept: Path) -> Iterator[LocalFederation]:
    """A federation for as long as the context lasts, however it ends."""
    home = Path(tempfile.mkdtemp(prefix="fedtune-deploy-"))
    try:
        federation = LocalFederation(home, clients, kept)
        try:
            yield federation
        finally:
            federation.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def up(scenario: Scenario, path: Path, observer: Observer) -> RunDirectory:
    """Run a scenario on a federation of real processes on this machine.

    Args:
        scenario: `clients.count` of its clients are started.
        path: the run directory to make.
        observer: shows the run while it goes on.

    Raises:
        ScenarioError: for what is found before anything is trained.
        RunError: if it fails; the run directory stays readable, `go_on` takes it up.
    """
    if scenario.task.data == CLIENTS:
        raise ScenarioError(
            "task.data = 'clients': on one machine clients hold the scenario's data; name some, or "
            "start each client with its own file (docs/deployment.md)"
        )
    settled, directory, federation = prepared(scenario, path)
    return _through(settled, directory, observer, federation, resume=False)


def go_on(path: Path, observer: Observer, changes: list[str]) -> RunDirectory:
    """Take up a deployed run with the same clients, whose stores are beside it.

    Raises:
        ScenarioError: if it is no run of a deployment.
    """
    directory, federation = opened(path, changes)
    return _through(directory.scenario, directory, observer, federation, resume=True)


def _through(
    scenario: Scenario, directory: RunDirectory, observer: Observer, federation: str, resume: bool
) -> RunDirectory:
    clients = scenario.clients.count
    threads = scenario.engine.threads
    with local_federation(clients, directory.deployment) as local:
        run_id = ""
        try:
            local.start(threads if isinstance(threads, int) else 1)
            run_id = local.submit(scenario, directory.path, federation, resume)
            follow(local.home, directory, observer, local.check)
        finally:
            local.keep_logs(run_id)
    return RunDirectory.open(directory.path)
