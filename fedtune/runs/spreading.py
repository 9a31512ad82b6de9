"""`engine.workers`: how many Ray workers a run has, and what each of them loads."""

from __future__ import annotations

from functools import partial

import torch

from fedtune.adversaries.setup import Adversary, make_adversary
from fedtune.cohort.engine import Engine, Resolved
from fedtune.errors import RunError, ScenarioError
from fedtune.runs.engines import DTYPES, make_engine, prepare_torch
from fedtune.scenario.schema import EngineSection, Scenario
from fedtune.tasks.base import Data
from fedtune.tasks.library import Library
from fedtune.tasks.load import Parts, Task, load_task
from fedtune.workers.cluster import Machine, connect, room, this_machine
from fedtune.workers.engine import SpreadEngine
from fedtune.workers.pool import Pool
from fedtune.workers.worker import Holding

CORES = 4


def with_workers(
    engine: Engine,
    scenario: Scenario,
    task: Task,
    adversary: Adversary,
    parts: Parts,
    library: Library | None = None,
) -> Engine:
    """The engine, spread over Ray workers where the scenario wants some.

    Args:
        library: lends workers that another run of this process had.

    Raises:
        ScenarioError: if Ray is absent, or has too few cores or GPUs.
    """
    section = scenario.engine
    if section.kind == "flower" or section.workers is None:
        if library is not None:
            library.close()  # workers of an earlier run would hold memory for nothing
        return engine
    count, cores, cards = _planned(section, engine.resolved)
    engine.resolved.workers = count, cores, cards
    section = section.model_copy(
        update={"device": "cuda" if cards else "cpu", "threads": cores, "workers": None}
    )
    own = scenario.model_copy(update={"engine": section})
    make = partial(hold, own, None if callable(parts) else parts, engine.resolved.backend)
    hired = partial(Pool, count, cores, cards, section.ray_address)
    pool = library.keep(hired.args, hired) if library else hired()
    return SpreadEngine(engine, pool, make, named_data(task, adversary), library is not None)


def hold(scenario: Scenario, parts: Parts, backend: str, library: Library) -> Holding:
    """What a worker loads: the base with its adapter, and the data.

    Args:
        scenario: with the engine of the worker.
        parts: the rows of each client, where they were dealt before.
        backend: the one that the run has.
        library: lends what the worker loaded for another run.
    """
    device, dtype = prepare_torch(scenario.engine, None), DTYPES[scenario.engine.precision]
    task = load_task(scenario, device, dtype, parts, library)
    adversary = make_adversary(scenario, task)
    resolved = Resolved(backend, str(device), torch.get_num_threads())
    engine, reason = make_engine(scenario, task, adversary, device, dtype, resolved)
    if engine.backend.name != backend:
        raise RunError(f"this worker trains one client at a time, because {reason}")
    return Holding(engine.backend, named_data(task, adversary))


def named_data(task: Task, adversary: Adversary) -> dict[str, Data]:
    """The data that can be evaluated on."""
    found = {"train": adversary.train, "test": task.test}
    return found if adversary.triggered is None else {**found, "triggered": adversary.triggered}


def _planned(section: EngineSection, resolved: Resolved) -> tuple[int, int, int]:
    """Number of workers; cores and GPUs of each."""
    machines = this_machine() if section.ray_address is None else connect(section.ray_address)
    if resolved.workers is not None:
        return _fitting(machines, section, *resolved.workers)
    cards = sum(machine.cards for machine in machines) if section.device != "cpu" else 0
    if section.device.startswith("cuda:"):
        raise ScenarioError(
            f"engine.device = {section.device!r}: each of engine.workers gets a GPU of its own; "
            "allowed: auto, cuda, cpu"
        )
    if section.device == "cuda" and not cards:
        raise ScenarioError("engine.device = 'cuda': Ray has no GPU for engine.workers")
    cores = section.threads if isinstance(section.threads, int) else None
    if isinstance(section.workers, int):
        count = section.workers
    else:
        count = cards or max(1, sum(machine.cores // (cores or CORES) for machine in machines))
    each = 1 if cards else 0
    if cores is None:
        most = _cores(machines, count, each)
        cores = most if cards else min(most, resolved.threads)  # no more than a step gains by
    return _fitting(machines, section, count, cores, each)


def _fitting(
    machines: list[Machine], section: EngineSection, count: int, cores: int, cards: int
) -> tuple[int, int, int]:
    """The workers, if there is room; cores of this machine may be shared."""
    shared = section.ray_address is None and not cards
    if not shared and (most := room(machines, cores, cards)) < count:
        raise ScenarioError(
            f"engine.workers = {section.workers!r}: {count} of {cores} cores and {cards} GPUs "
            f"each; there is room for {most}"
        )
    return count, cores, cards


def _cores(machines: list[Machine], count: int, cards: int) -> int:
    """The most cores that each of so many workers can have; at least one."""
    most = max(machine.cores for machine in machines)
    fitting = (c for c in range(most, 0, -1) if room(machines, c, cards) >= count)
    return next(fitting, 1)
