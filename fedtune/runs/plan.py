"""What a run will cost, before anything is trained: parameters, bytes, memory, time."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedtune.adapters.layout import Tensors
from fedtune.apps.user_budget import UserBudget
from fedtune.cohort.engine import cohorts
from fedtune.cohort.sizing import held_memory, peak_memory
from fedtune.errors import Declined
from fedtune.runs.build import Federation, build
from fedtune.runs.cost import evaluation_seconds, probe, train_seconds
from fedtune.runs.loop import start_state
from fedtune.runs.participations import planned_rounds
from fedtune.runs.settling import settle_paths
from fedtune.runs.traffic import traffic
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.loading import Overrides

SAMPLED_ROUNDS = 3
LATER = (
    "what a client is sent depends on what it was sent before; rounds after the sixth are taken to "
    "be like the fifth and sixth"
)
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
        run_bytes_down, run_bytes_up: payload of all rounds, exactly where no note says else.
        opening_bytes_down, opening_bytes_up: payload of what comes before round 1.
        backend, device, cohort_size: how clients are trained.
        memory_base_bytes, memory_peak_bytes: held with model and data loaded, and while a cohort
            trains.
        seconds_prepare, seconds_train, seconds_evaluate: loading; training of a round; one
            evaluation.
        seconds_total: of all rounds.
        privacy: from the least to the most of any client: noise multiplier, sampling rate,
            participations (or rounds of a server) that ε is made for, ε after them; and δ.
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
    opening_bytes_down: int
    opening_bytes_up: int
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
    privacy: dict[str, list[float]] | None = None

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
    with closing(federation.engine):
        return _measured(federation, time.perf_counter() - started)


def _measured(federation: Federation, prepared: float) -> Plan:
    if (workers := federation.engine.resolved.workers) is not None:
        torch.set_num_threads(workers[1])  # steps are timed here, as a worker does them
    state = start_state(federation, None)
    taking_part = _participants(federation)
    sent = traffic(federation, state.arrays, taking_part)
    first, down, up = sent.clients, sent.down, sent.up
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
    if workers is not None:
        notes.append("engine.workers: memory is this process's; each worker holds about as much")
    if not sent.exact:
        notes.append(LATER)
    if spent := without_budget(federation):
        notes.append(f"privacy: {spent} clients have no budget left for a round on this data")
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
        run_bytes_down=sent.run_down,
        run_bytes_up=sent.run_up,
        opening_bytes_down=sent.opening_down,
        opening_bytes_up=sent.opening_up,
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
        privacy=foreseen(federation),
    )


def foreseen(federation: Federation) -> dict[str, list[float]] | None:
    """What privacy will cost, before anything is trained; None without it."""
    clients, eligible = federation.clients, federation.task.clients.eligible
    budget = federation.budget
    if budget is None:
        return None
    if isinstance(budget, UserBudget):
        rounds = planned_rounds(federation.scenario)
        ends = {
            "noise_multiplier": budget.round.noise_multiplier,
            "sample_rate": budget.round.sample_rate,
            "participations": float(rounds),
            "epsilon": budget.spent(rounds),
        }
        return {**{name: [end, end] for name, end in ends.items()}, "delta": [budget.section.delta]}
    sizes = {client: len(clients.training_rows(client)) for client in eligible}
    terms = [budget.terms(client, size) for client, size in sizes.items()]
    columns = {
        "noise_multiplier": [one.noise_multiplier for one in terms],
        "sample_rate": [one.sample_rate for one in terms],
        "participations": [float(one.participations) for one in terms],
        "epsilon": [budget.at_end(client, size) for client, size in sizes.items()],
    }
    ranges = {name: [min(values), max(values)] for name, values in columns.items()}
    return {**ranges, "delta": [budget.section.delta]}


def without_budget(federation: Federation) -> int:
    """How many clients' ledgers forbid even one round."""
    budget, found = federation.clients.budget, 0
    for client in federation.task.clients.eligible if budget else ():
        assert budget is not None
        try:
            budget.afford(client, len(federation.clients.training_rows(client)))
        except Declined:
            found += 1
    return found


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
