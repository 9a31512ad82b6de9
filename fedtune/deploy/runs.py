"""A run on a SuperLink: what is prepared, what is submitted, who is admitted."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedtune.errors import RunError, ScenarioError
from fedtune.files import write_json
from fedtune.grids.deployed_grid import nodes_text
from fedtune.runs.api import check_resumable, overridden
from fedtune.runs.checkpoints import load_checkpoint
from fedtune.runs.directory import RunDirectory
from fedtune.runs.flower import FEDERATION, NODES, OUT, REPORT, RESUME, SCENARIO, check_out
from fedtune.runs.observing import Observer
from fedtune.runs.processes import flower_environment
from fedtune.runs.server_files import OWNER
from fedtune.runs.settling import settle_paths
from fedtune.runs.submitting import Ended, follow, submit
from fedtune.runs.superlink import flwr
from fedtune.scenario import Scenario, dump_scenario, load_scenario

APPS = {
    "serverapp": "fedtune.deploy.server_app:app",
    "clientapp": "fedtune.deploy.client_app:app",
}
KEPT = "federation.json"


@dataclass(frozen=True)
class Asked:
    """A run, as it is submitted.

    Attributes:
        scenario: settled.
        path: the run directory, absolute, on the machine of the SuperLink.
        federation: names what clients keep for it.
        nodes: node id of each registered client.
        resume: whether it goes on.
    """

    scenario: Scenario
    path: Path
    federation: str
    nodes: Mapping[int, int]
    resume: bool = False

    def submit(
        self,
        folder: Path,
        connection: str,
        environment: dict[str, str],
        apps: Mapping[str, str] = APPS,
    ) -> str:
        """Start it; gives Flower's id of it. The folder is where the ServerApp reports to."""
        (folder / OWNER).write_text(str(os.getpid()), "ascii")
        config = {
            SCENARIO: dump_scenario(self.scenario), OUT: str(self.path), RESUME: self.resume,
            REPORT: str(folder), FEDERATION: self.federation, NODES: nodes_text(self.nodes),
        }  # fmt: skip
        return submit(folder, apps, config, environment, connection)


def prepared(scenario: Scenario, path: Path) -> tuple[Scenario, RunDirectory, str]:
    """The scenario as a deployment takes it, its new directory, and the federation's name.

    One client's failure does not end the run, unless the scenario says that it does.

    Raises:
        ScenarioError: if the directory is taken.
    """
    given = "on_error" in scenario.faults.model_fields_set
    kinder = scenario if given else load_scenario(scenario, {"faults.on_error": "skip"})
    settled = settle_paths(kinder)
    RunDirectory.check_free(path)
    check_out(settled, {OUT: str(path.resolve())})
    directory, federation = RunDirectory(path.resolve()), secrets.token_hex(16)
    write_json(directory.deployment / KEPT, {"federation": federation})
    return settled, directory, federation


def opened(path: Path, changes: list[str]) -> tuple[RunDirectory, str]:
    """The directory of a deployed run to go on with, and the federation's name.

    Raises:
        ScenarioError: if it is no run of a deployment.
    """
    directory = RunDirectory.open(path.resolve())
    file = directory.deployment / KEPT
    if not file.exists():
        raise ScenarioError(f"{str(path)!r}: not of a deployment; use fedtune run --resume")
    with directory.locked():
        scenario, found = overridden(directory, changes), load_checkpoint(directory.checkpoints)
        check_resumable(directory, scenario, found.round if found else 0)
        directory.write_scenario(scenario)
    return directory, str(json.loads(file.read_text("utf-8"))["federation"])


def register(public_key: Path, connection: str, environment: dict[str, str]) -> int:
    """Admit a client's key to a SuperLink; gives the node id that belongs to it.

    Raises:
        RunError: if the SuperLink does not take it.
    """
    found = flwr(["supernode", "register", str(public_key), connection], environment)
    if not found.get("success"):
        raise RunError(f"flwr supernode register: {found.get('error-message') or found}")
    return int(found["node-id"])


def admit(client: int, public_key: Path, connection: str, nodes: Path) -> int:
    """Register a client's key and note its node id in a file of all clients.

    Raises:
        ScenarioError: if the file has the client already, or there is no such key.
        RunError: if the SuperLink does not take the key.
    """
    known = read_nodes(nodes) if nodes.exists() else {}
    if client in known:
        raise ScenarioError(f"{str(nodes)!r}: client {client} is registered already")
    if not public_key.is_file():
        raise ScenarioError(f"KEY = {str(public_key)!r}: no such file")
    known[client] = register(public_key, connection, flower_environment())
    write_json(nodes, {str(one): node for one, node in sorted(known.items())})
    return known[client]


def read_nodes(path: Path) -> dict[int, int]:
    """Node ids by client, as `admit` wrote them.

    Raises:
        ScenarioError: if it is no such file.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        return {int(client): int(node) for client, node in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ScenarioError(f"--nodes {str(path)!r}: cannot be read ({error})") from None


def run_on(asked: Asked, connection: str, folder: Path, observer: Observer) -> RunDirectory:
    """Run on a SuperLink of this machine that is there already, and follow to the end.

    Raises:
        RunError: if the run fails; its directory stays readable.
        KeyboardInterrupt: after the run was stopped.
    """
    directory, environment = RunDirectory(asked.path), flower_environment()
    run_id = asked.submit(folder, connection, environment)
    ended = Ended(run_id, connection, environment)
    try:
        follow(folder, directory, observer, lambda: ended.check(folder, directory))
    except KeyboardInterrupt:
        flwr(["stop", run_id, connection], environment)
        raise
    return RunDirectory.open(asked.path)
