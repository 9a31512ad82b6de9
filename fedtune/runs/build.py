"""From a scenario to the parts of a run, everything checked before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.serverapp import Grid

from fedtune.adapters.wrap import Adapted
from fedtune.adversaries.grid import AttackGrid
from fedtune.adversaries.ranks import RankAttackGrid
from fedtune.adversaries.setup import Adversary, make_adversary
from fedtune.apps.budget import Budget
from fedtune.apps.clients import CohortClients
from fedtune.apps.server_data import ServerData
from fedtune.apps.store import MemoryStore
from fedtune.apps.user_budget import UserBudget
from fedtune.cohort.engine import Engine, Resolved
from fedtune.errors import ScenarioError
from fedtune.grids.cohort_grid import CohortGrid
from fedtune.grids.faults import FaultGrid
from fedtune.grids.metered import MeteredGrid
from fedtune.grids.node_grid import NodeGrid
from fedtune.rules.trust import FLTrust
from fedtune.runs.engines import DTYPES, is_bare, make_engine, prepare_torch
from fedtune.runs.opening import make_opening
from fedtune.runs.privacy import check_deltas, make_budget, make_user_privacy
from fedtune.runs.refusals import check_bare, check_factors
from fedtune.runs.spreading import with_workers
from fedtune.runs.strategies import make_strategy
from fedtune.runs.traces import read_trace
from fedtune.scenario.schema import Scenario
from fedtune.server.base import AdapterStrategy
from fedtune.tasks.clients import AbsentRows
from fedtune.tasks.library import Library
from fedtune.tasks.load import Parts, Task, load_task
from fedtune.waiting import described, spins
from fedtune.workers.engine import SpreadEngine


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
    device, dtype = prepare_torch(scenario.engine, resolved), DTYPES[scenario.engine.precision]
    strategy = make_strategy(scenario)
    task = change(load_task(scenario, device, dtype, parts, library))
    absent = isinstance(task.clients, AbsentRows)
    if absent and outer is None:
        raise ScenarioError("task.data = 'clients': only in a deployment; see fedtune deploy")
    size = sum(parameter.numel() for parameter in task.base.model.parameters())
    adversary = make_adversary(scenario, task)
    lent = library.threads if library else None
    runner, reason = make_engine(
        scenario, task, adversary, device, dtype, resolved, on_resolve, lent
    )
    if outer is None:
        runner = with_workers(runner, scenario, task, adversary, parts, library)
    store = MemoryStore()
    clients = _clients(scenario, strategy, task, runner, store, folder)
    budget = clients.budget
    _connect(strategy, scenario, task, clients, outer is None)
    eligible, on_error = task.clients.eligible, scenario.faults.on_error
    grid = (
        CohortGrid(clients, eligible, on_error)
        if outer is None
        else _node_grid(outer, task, on_error)
    )
    troubled = _troubled(grid, adversary, scenario, strategy)
    return Federation(
        scenario,
        task,
        runner.setting.adapted,
        runner,
        clients,
        store,
        MeteredGrid(troubled),
        troubled if isinstance(troubled, FaultGrid) else None,
        grid,
        strategy,
        adversary,
        size,
        _notes(task, runner, reason, clients.holdout),
        budget or make_user_privacy(scenario, strategy, task.clients, folder),
    )


def _clients(
    scenario: Scenario,
    strategy: AdapterStrategy,
    task: Task,
    engine: Engine,
    store: MemoryStore,
    folder: Path | None,
) -> CohortClients:
    """The client side, with its budgets of privacy."""
    rows, own, seed = task.clients, scenario.clients, scenario.run.seed
    holdout = own.held_share if scenario.task.head == "local" else own.holdout or 0.0
    absent = isinstance(rows, AbsentRows)
    local = scenario.task.head == "local"
    alone = len(rows.eligible) == 1 < scenario.clients.count and not local  # in a deployment
    short = all(len(rows.rows(client)) < 2 for client in rows.eligible)
    if holdout and short and not absent and not alone:
        given = "task.head = 'local'" if local else f"clients.holdout = {own.holdout}"
        raise ScenarioError(
            f"{given}: no client has two examples, one to train on and one to be evaluated on"
        )
    budget = None if absent else make_budget(scenario, rows, strategy.participation, folder)
    method = type(strategy).client_round
    clients = CohortClients(engine, rows, store, seed, holdout, method, budget)
    if budget is not None:
        check_deltas(budget, {c: len(clients.training_rows(c)) for c in rows.eligible})
    return clients


def _connect(
    strategy: AdapterStrategy, scenario: Scenario, task: Task, clients: CohortClients, inside: bool
) -> None:
    """Show the strategy the adapter, and the server's own data where it needs them.

    Args:
        inside: whether the clients are in this process.
    """
    layout = clients.engine.setting.layout
    if is_bare(task):
        check_bare(strategy, scenario)
    if isinstance(strategy.rule, FLTrust):
        strategy.root = ServerData(clients.engine, task.server_rows, scenario.run.seed)
    if strategy.multiplies:
        check_factors(strategy, layout)
    strategy.meet(layout, clients.engine.setting.adapted.initial)
    strategy.opening = make_opening(scenario, clients, task, inside, strategy.participation)


def _node_grid(outer: Grid, task: Task, on_error: str) -> NodeGrid:
    """Logical clients over Flower's grid, which may know them already."""
    eligible = task.clients.eligible
    if isinstance(outer, NodeGrid):
        outer.eligible, outer.on_error = eligible, on_error
        return outer
    return NodeGrid(outer, len(task.clients), eligible, on_error)


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
            lambda: strategy.downlink.tensors,
        )
    if adversary.rank_attack is not None:
        everything = scenario.attack.knowledge == "all"
        ballots = strategy.ballots
        grid = RankAttackGrid(grid, adversary.rank_attack, adversary.malicious, everything, ballots)
    if scenario.faults.any:
        lost = read_trace("faults.trace", scenario.faults.trace, scenario.clients.count)
        grid = FaultGrid(grid, scenario.faults, scenario.run.seed, lost)
    return grid


def _notes(task: Task, engine: Engine, reason: str | None, holdout: float) -> list[str]:
    notes, rows, eligible = list(task.notes), task.clients, task.clients.eligible
    if isinstance(engine, SpreadEngine):
        notes.append(
            f"engine: {engine.pool.count} Ray workers, CPU cores each: {engine.pool.cores}"
        )
    if engine.setting.device.type == "cpu" and spins():
        notes.append(f"engine: {described()}; import fedtune first, or set OMP_WAIT_POLICY=PASSIVE")
    if reason:
        notes.append(f"engine: training one client at a time, because {reason}")
    if empty := len(rows) - len(eligible):
        notes.append(f"clients: {empty} of {len(rows)} hold no examples and take no part")
    if holdout and (short := sum(len(rows.rows(client)) == 1 for client in eligible)):
        notes.append(f"clients: {short} of {len(rows)} have one example and are not evaluated")
    return notes
