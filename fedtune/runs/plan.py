"""What a run will cost, before anything is trained: parameters, bytes, memory, time."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message

from fedtune.adapters.layout import Tensors
from fedtune.apps.rounds import Train
from fedtune.cohort.engine import cohorts
from fedtune.cohort.plan import ClientResult
from fedtune.cohort.sizing import held_memory, peak_memory
from fedtune.grids.arrays import to_record
from fedtune.grids.compat import set_message_id
from fedtune.grids.sizes import Size, message_size
from fedtune.runs.build import Federation, build, settle_paths
from fedtune.runs.cost import evaluation_seconds, probe, train_seconds
from fedtune.runs.loop import start_state
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.loading import Overrides

SAMPLED_ROUNDS = 3
ID_LENGTH = 64
OTHER_ENGINE = "time and memory are those of the cohort engine; Flower's runtime needs more of both"


@dataclass(frozen=True)
class Plan:
    """The cost of a run.

    Attributes:
        strategy, adapter: names.
        parameters_base, parameters_trained, parameters_sent: numbers; sent each way.
        clients, clients_per_round: that hold examples, and that take part on average.
        bytes_down, bytes_up, framing_down, framing_up: of round 1, exactly: payload, and what
            Flower adds to it.
        run_bytes_down, run_bytes_up: payload of the whole run, exactly.
        backend, device, cohort_size: how clients are trained.
        memory_base_bytes, memory_peak_bytes: held with model and data loaded, and while a cohort
            trains.
        seconds_prepare, seconds_train, seconds_evaluate: loading; training of a round; one
            evaluation.
        seconds_total: of all rounds.
        notes: lines that the user should see.
    """

    strategy: str
    adapter: str
    parameters_base: int
    parameters_trained: int
    parameters_sent: int
    clients: int
    clients_per_round: float
    bytes_down: int
    bytes_up: int
    framing_down: int
    framing_up: int
    run_bytes_down: int
    run_bytes_up: int
    backend: str
    device: str
    cohort_size: int
    memory_base_bytes: int
    memory_peak_bytes: int
    seconds_prepare: float
    seconds_train: float
    seconds_evaluate: float
    seconds_total: float
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def plan(scenario: str | Path | Scenario, overrides: Overrides = ()) -> Plan:
    """Estimate a run's cost; no result is trained and nothing is written.

    Args:
        scenario: a path, the name of a shipped scenario, or a `Scenario`.
        overrides: dotted keys to values, or `key=value` strings.

    Raises:
        ScenarioError: for whatever would stop the run before it trains.
    """
    started = time.perf_counter()
    federation = build(settle_paths(load_scenario(scenario, overrides)))
    prepared = time.perf_counter() - started
    state = start_state(federation, None)
    taking_part = _participants(federation)
    first, down, up = _messages(federation, state.arrays)
    start = with_kept(federation, state.arrays)
    works = federation.clients.works(first or list(federation.task.clients.eligible[:1]), 1, start)
    size = federation.engine.settle(works, 1)
    base = held_memory(federation.engine.setting.device)
    cost = probe(federation, cohorts(works, size)[0])
    train = [
        train_seconds(federation, clients, server_round, start, cost)
        for server_round, clients in enumerate(taking_part[:SAMPLED_ROUNDS], 1)
    ]
    evaluate = evaluation_seconds(federation, start)
    flower = federation.scenario.engine.kind == "flower"
    notes = [*federation.notes, *([OTHER_ENGINE] if flower else [])]
    section, layout = federation.scenario.run, federation.adapted.layout
    mean, rounds = float(np.mean(train)), section.rounds
    looks = -(-rounds // section.eval_every) + 1
    updates = sum(map(len, taking_part))
    one = client_payload(federation)
    return Plan(
        strategy=federation.strategy.name,
        adapter=federation.scenario.adapter.kind,
        parameters_base=federation.parameters_base,
        parameters_trained=layout.width,
        parameters_sent=sum(spec.size for spec in layout.sent),
        clients=len(federation.task.clients.eligible),
        clients_per_round=updates / rounds,
        bytes_down=down.payload,
        bytes_up=up.payload,
        framing_down=down.framing,
        framing_up=up.framing,
        run_bytes_down=one * updates,
        run_bytes_up=one * updates,
        backend=federation.engine.backend.name,
        device=federation.engine.resolved.device,
        cohort_size=size,
        memory_base_bytes=base,
        memory_peak_bytes=peak_memory(federation.engine.setting.device),
        seconds_prepare=prepared,
        seconds_train=mean,
        seconds_evaluate=evaluate,
        seconds_total=mean * rounds + evaluate * looks,
        notes=notes,
    )


def client_payload(federation: Federation) -> int:
    """Bytes of the tensors that one client sends in a round."""
    setting = federation.engine.setting
    return sum(spec.wire_bytes(setting.master.itemsize) for spec in setting.layout.sent)


def _participants(federation: Federation) -> list[list[int]]:
    """Who takes part in each round; a pure function of the seed, so it is known."""
    clients, draw = federation.task.clients.eligible, federation.strategy.participation.draw
    return [draw(clients, r) for r in range(1, federation.scenario.run.rounds + 1)]


def with_kept(federation: Federation, arrays: Tensors) -> Tensors:
    """Global tensors with what a client that keeps a head begins with."""
    setting = federation.engine.setting
    initial = federation.adapted.initial
    kept = {s.name: initial[s.name].to(setting.device, setting.master) for s in setting.layout.kept}
    return {**arrays, **kept}


def _messages(federation: Federation, arrays: Tensors) -> tuple[list[int], Size, Size]:
    """The clients of round 1, and the bytes of its messages and replies."""
    down = up = Size()
    clients: list[int] = []
    strategy, grid = federation.strategy, federation.grid
    with federation.serving.serving():
        for message in strategy.configure_train(1, to_record(arrays), ConfigRecord(), grid):
            client = grid.directory.client(message.metadata.dst_node_id)
            clients.append(client)
            down += message_size(message)
            set_message_id(message, "0" * ID_LENGTH)
            up += message_size(_reply(federation, message, client))
    return clients, down, up


def _reply(federation: Federation, message: Message, client: int) -> Message:
    """What a client would answer, had training changed nothing."""
    clients = replace(federation.clients, store=_Forgetful())
    examples = len(clients.training_rows(client))
    view = clients.view(client, message)
    going, result = clients.method(view), None
    while True:
        try:
            job = going.send(result)
        except StopIteration as end:
            return clients.reply(message, view, end.value)
        trains = isinstance(job, Train)
        result = ClientResult(client, job.state, 1.0, 1, examples) if trains else job.state


class _Forgetful:
    """A store that keeps nothing."""

    def get(self, client: int) -> None:
        """Nothing."""

    def put(self, client: int, kept: Tensors) -> None:
        """Forget it."""
