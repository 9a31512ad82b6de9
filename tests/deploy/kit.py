"""Deployments within one process: real trainers behind Flower's messages, no sockets between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Error, Message

import fedtune
from fedtune.deploy.settings import ClientSettings
from fedtune.deploy.trainer import Trainer
from fedtune.grids.cohort_grid import CohortGrid
from fedtune.grids.compat import content_from_bytes, make_run, message_to_bytes, task_identity
from fedtune.grids.deployed_grid import DeployedGrid
from fedtune.runs.directory import RunDirectory
from fedtune.runs.settling import settle_paths
from fedtune.scenario import Scenario, dump_scenario, load_scenario
from fedtune.tasks.library import Library
from tests.runs.kit import small

FEDERATION = "ab" * 16
LIBRARY = Library()


def settings_of(folder: Path, client: int, **more) -> ClientSettings:
    """A client's settings; by default it holds what the scenario deals to it."""
    given = {"client": client, "store": str(folder / f"store-{client}"), "threads": 1,
             "data": {"dealt": True}, "socket": str(folder / "s"), **more}  # fmt: skip
    return ClientSettings.model_validate(given)


class TrainerClients:
    """The client side of a grid: each message goes to a trainer as the ClientApp sends it."""

    def __init__(self, trainers: dict[int, Trainer], scenario: Scenario) -> None:
        self.trainers, self.text = trainers, dump_scenario(scenario)
        self.bodies: list[bytes] = []

    def handle(self, messages: Sequence[tuple[int, Message]]) -> list[Message]:
        return [self.answer(client, message) for client, message in messages]

    def answer(self, client: int, message: Message) -> Message:
        header = {"scenario": self.text, "federation": FEDERATION}
        said, body = self.trainers[client].answer(header, message_to_bytes(message))
        if "code" in said:
            return Message(Error(said["code"], said["reason"]), reply_to=message)
        self.bodies.append(body)
        return Message(content_from_bytes(body), reply_to=message)


class LeavingGrid(CohortGrid):
    """Says that only some of its nodes are connected."""

    away: frozenset[int] = frozenset()

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if node not in self.away]


class Deployment:
    """A server and its clients in this process.

    Attributes:
        events: what the grid told.
    """

    def __init__(self, scenario: Scenario, trainers: dict[int, Trainer]) -> None:
        self.scenario, self.clients = scenario, TrainerClients(trainers, scenario)
        self.inner = LeavingGrid(self.clients, sorted(trainers))
        self.inner.set_run(make_run(7))
        self.nodes = {client: self.inner.directory.node(client) for client in trainers}
        self.events: list[tuple[str, dict]] = []

    @contextmanager
    def grid(self) -> Iterator[DeployedGrid]:
        with task_identity(7):
            yield DeployedGrid(self.inner, self.nodes, self.scenario.deploy, self.tell)

    def tell(self, event: str, **facts) -> None:
        self.events.append((event, facts))

    def run(self, out: Path) -> RunDirectory:
        with self.grid() as grid:
            return fedtune.run(self.scenario, (), out, grid=grid, library=LIBRARY, pictures=False)

    def resume(self, out: Path, **changes) -> RunDirectory:
        with self.grid() as grid:
            return fedtune.resume(out, changes, grid=grid, library=LIBRARY, pictures=False)


def deployment(folder: Path, settings: dict[int, dict] | None = None, **changes) -> Deployment:
    """A deployment of the small scenario, a trainer for each client."""
    given = {"clients__count": 3, "clients__participation__value": 1.0, "engine__kind": "flower",
             "faults__on_error": "skip", **changes}  # fmt: skip
    scenario = settle_paths(load_scenario("quickstart", small(**given)))
    own = settings or {}
    trainers = {
        client: trainer_of(settings_of(folder, client, **own.get(client, {})))
        for client in range(scenario.clients.count)
    }
    return Deployment(scenario, trainers)


def trainer_of(settings: ClientSettings) -> Trainer:
    """A trainer that borrows base and examples from those of other tests."""
    trainer = Trainer(settings)
    trainer._library = LIBRARY
    return trainer
