"""From a scenario to the parts of a run, everything checked before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.serverapp import Grid

from fedtune.adapters.kinds import find_kind
from fedtune.adapters.wrap import Adapted, wrap
from fedtune.adversaries.grid import AttackGrid
from fedtune.adversaries.ranks import RankAttackGrid
from fedtune.adversaries.setup import Adversary, make_adversary
from fedtune.apps.budget import Budget
from fedtune.apps.clients import CohortClients
from fedtune.apps.server_data import ServerData
from fedtune.apps.store import MemoryStore
from fedtune.apps.user_budget import UserBudget
from fedtune.cohort.absent import AbsentBackend
from fedtune.cohort.backend import Setting
from fedtune.cohort.engine import Engine, Resolved
from fedtune.cohort.probe import choose_backend
from fedtune.errors import ScenarioError
from fedtune.grids.cohort_grid import CohortGrid
from fedtune.grids.faults import FaultGrid
from fedtune.grids.metered import MeteredGrid
from fedtune.grids.node_grid import NodeGrid
from fedtune.rules.trust import FLTrust
from fedtune.runs.opening import make_opening
from fedtune.runs.participations import planned_rounds
from fedtune.runs.privacy import check_deltas, make_budget, make_user_privacy
from fedtune.runs.refusals import check_bare, check_factors
from fedtune.runs.strategies import adapter_kind, delivered_roles, frame_source, make_strategy
from fedtune.runs.traces import read_trace
from fedtune.scenario.schema import Scenario
from fedtune.server.base import AdapterStrategy
from fedtune.tasks.clients import AbsentRows
from fedtune.tasks.library import Library
from fedtune.tasks.load import Parts, Task, load_task

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
PROBE_ROWS = 8
OWN_THREADS = torch.get_num_threads()


@dataclass
class Federation:
    """A run's parts, ready for round 1.

    Attributes:
        scenario: what it was built from.
        task: model, data, clients' rows.
        adapted: the model with its adapter.
        engine: trains and evaluates.
        clients: the client side.
        store: what clients of this process keep.
        grid: carries messages, metered.
        faults: what goes wrong on the way, if anything does.
        serving: the grid within, whose `serving()` lets strategies make messages.
        strategy: the server's method.
        adversary: the malicious clients.
        parameters_base: parameters of the base with its head, before an adapter was put on.
        notes: lines that the user should see.
        budget: of privacy, the clients' or the server's.
    """

    scenario: Scenario
    task: Task
    adapted: Adapted
    engine: Engine
    clients: CohortClients
    store: MemoryStore
    grid: MeteredGrid
    faults: FaultGrid | None
    serving: CohortGrid | NodeGrid
    strategy: AdapterStrategy
    adversary: Adversary
    parameters_base: int
    notes: list[str]
    budget: Budget | UserBudget | None = None


def build(
    scenario: Scenario,
    parts: Parts = None,
    resolved: Resolved | None = None,
    on_resolve: Callable[[Resolved], None] = lambda resolved: None,
    outer: Grid | None = None,
    library: Library | None = None,
    folder: Path | None = None,
    change: Callable[[Task], Task] = lambda task: task,
) -> Federation:
    """Build a run.

    Args:
        parts: the rows of each client, or what deals them, and
        resolved: what the engine settled, where a run is taken up again.
        on_resolve: told of each thing that the engine settles.
        outer: Flower's grid, where clients are in other processes; by default they are in this one.
        library: lends model and data that another run of this process loaded.
        folder: the run directory, where private clients keep their ledger.
        change: of the task before anything is made of it, for an audit.

    Raises:
        ScenarioError: for whatever cannot work, before anything is trained.
    """
    engine = scenario.engine
    device = torch.device(pick_device(resolved.device if resolved else engine.device))
    threads = resolved.threads if resolved else engine.threads
    torch.set_num_threads(threads if isinstance(threads, int) else OWN_THREADS)
    if engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(engine.deterministic)
    strategy, kind = make_strategy(scenario), adapter_kind(scenario)
    dtype = DTYPES[engine.precision]
    task = change(load_task(scenario, device, dtype, parts, library))
    size = sum(parameter.numel() for parameter in task.base.model.parameters())
    head = scenario.task.head
    delivers = delivered_roles(scenario)
    bare = task.base.model.device.type == "meta"
    place = torch.device("meta") if bare else device
    adapted = wrap(
        task.base, scenario.adapter, kind, head, scenario.run.seed, place, dtype, delivers
    )
    if bare:
        check_bare(strategy, scenario)
    adversary = make_adversary(scenario, task)
    setting = Setting(
        adapted,
        task.objective,
        adversary.train,
        scenario.local,
        scenario.run.rounds,
        device,
        dtype,
        scenario.privacy.per_example,
    )
    wanted = resolved.backend if resolved else engine.kind.replace("flower", "cohort")
    sample = np.arange(min(PROBE_ROWS, len(task.train)))
    backend, reason = (AbsentBackend(), None) if bare else choose_backend(setting, wanted, sample)
    notes = _notes(task, reason)
    settled = resolved or Resolved(backend.name, str(device), torch.get_num_threads())
    runner = Engine(backend, setting, settled, engine.cohort_size, on_resolve)
    if head == "local" and all(len(task.clients.rows(c)) < 2 for c in task.clients.eligible):
        raise ScenarioError(
            "task.head = 'local': no client has two examples, one to train and one to evaluate on"
        )
    own = scenario.clients
    holdout = own.held_share if head == "local" else own.holdout or 0.0
    store = MemoryStore()
    method = type(strategy).client_round
    absent = isinstance(task.clients, AbsentRows)
    if absent and outer is None:
        raise ScenarioError("task.data = 'clients': only in a deployment; see fedtune deploy")
    budget = None if absent else make_budget(scenario, task.clients, strategy.participation, folder)
    clients = CohortClients(runner, task.clients, store, scenario.run.seed, holdout, method, budget)
    if budget is not None:
        check_deltas(budget, {c: len(clients.training_rows(c)) for c in task.clients.eligible})
    if isinstance(strategy.rule, FLTrust):
        strategy.root = ServerData(runner, task.server_rows, scenario.run.seed)
    if strategy.multiplies:
        check_factors(strategy, adapted.layout)
    strategy.meet(adapted.layout, adapted.initial)
    strategy.opening = make_opening(scenario, clients, task, outer is None)
    eligible, on_error = task.clients.eligible, scenario.faults.on_error
    grid = (
        CohortGrid(clients, eligible, on_error)
        if outer is None
        else outer
        if isinstance(outer, NodeGrid)
        else NodeGrid(outer, len(task.clients), eligible, on_error)
    )
    if isinstance(grid, NodeGrid):
        grid.eligible = eligible
    troubled = _troubled(grid, adversary, scenario, strategy)
    return Federation(
        scenario,
        task,
        adapted,
        runner,
        clients,
        store,
        MeteredGrid(troubled),
        troubled if isinstance(troubled, FaultGrid) else None,
        grid,
        strategy,
        adversary,
        size,
        notes,
        budget or make_user_privacy(scenario, strategy, task.clients, folder),
    )


def _troubled(
    grid: Grid, adversary: Adversary, scenario: Scenario, strategy: AdapterStrategy
) -> Grid:
    """The grid with the scenario's attack on what is sent, and its faults around that."""
    if adversary.attack is not None:
        grid = AttackGrid(
            grid,
            adversary.attack,
            adversary.malicious,
            scenario.attack.knowledge == "all",
            strategy.preview,
            scenario.run.seed,
        )
    if adversary.rank_attack is not None:
        everything = scenario.attack.knowledge == "all"
        ballots = strategy.ballots
        grid = RankAttackGrid(grid, adversary.rank_attack, adversary.malicious, everything, ballots)
    if scenario.faults.any:
        lost = read_trace("faults.trace", scenario.faults.trace, scenario.clients.count)
        grid = FaultGrid(grid, scenario.faults, scenario.run.seed, lost)
    return grid


def pick_device(name: str) -> str:
    """torch's name of the scenario's `engine.device`.

    Raises:
        ScenarioError: if it is absent.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if count else "cpu"
    if name == "cpu":
        return name
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        found = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise ScenarioError(f"engine.device = {name!r}: this machine has: {found}")
    return f"cuda:{index}"


def settle_paths(scenario: Scenario) -> Scenario:
    """The scenario with its adapter kind settled and its local paths made absolute."""
    settled = with_absolute_paths(scenario)
    settled.adapter.kind = adapter_kind(scenario)
    if find_kind(settled.adapter.kind).unscaled:
        settled.adapter.alpha = float(settled.adapter.rank)
    if settled.adapter.kind == "lora-sb":
        settled.adapter.init = frame_source(scenario)  # type: ignore[assignment]
    if settled.privacy.mechanism != "none":
        settled.privacy.rounds = planned_rounds(scenario)
    return settled


def with_absolute_paths(scenario: Scenario) -> Scenario:
    """A copy of the scenario that can be read from another folder."""
    raw = scenario.model_copy(deep=True)
    for key in ("base", "data", "test"):
        value = getattr(raw.task, key)
        if value is not None and not value.startswith("builtin:"):
            path = Path(value).expanduser()
            if path.exists():
                setattr(raw.task, key, str(path.resolve()))
    if (file := raw.clients.participation.file) is not None:
        raw.clients.participation.file = str(Path(file).expanduser().resolve())
    if (file := raw.privacy.ledger) is not None:
        raw.privacy.ledger = str(Path(file).expanduser().resolve())
    if (file := raw.faults.trace) is not None:
        raw.faults.trace = str(Path(file).expanduser().resolve())
    return raw


def _notes(task: Task, reason: str | None) -> list[str]:
    notes = list(task.notes)
    if reason:
        notes.append(f"engine: training one client at a time, because {reason}")
    if empty := len(task.clients) - len(task.clients.eligible):
        notes.append(f"clients: {empty} of {len(task.clients)} hold no examples and take no part")
    return notes
