"""Runs from Python: `fedtune.run("quickstart", {"run.rounds": 5})`."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedtune.apps.store import KEPT, FileStore
from fedtune.cohort.engine import Resolved
from fedtune.errors import ScenarioError
from fedtune.grids.node_grid import NodeGrid
from fedtune.reporting.partition import draw_partition
from fedtune.runs.build import Federation, build
from fedtune.runs.checkpoints import Checkpoint, load_checkpoint
from fedtune.runs.clientwise import by_client
from fedtune.runs.directory import RunDirectory
from fedtune.runs.loop import ServerState, run_rounds, start_state
from fedtune.runs.observing import Observer, Started
from fedtune.runs.on_flower import run_on_flower
from fedtune.runs.saving import save_result
from fedtune.runs.settling import settle_paths, settle_rounds
from fedtune.runs.strategies import what_clients_keep
from fedtune.runs.summary import draw_run, summarise
from fedtune.runs.tracking import Tracked, check_trackers
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.loading import Overrides, validate
from fedtune.tasks.clients import DealtRows
from fedtune.tasks.library import Library

RESUMABLE = ("run.rounds", "run.eval_every", "run.checkpoint_every")


class Silent:
    """An observer that shows nothing."""

    def started(self, run: Started) -> None:
        """Say nothing."""

    def finished_round(self, line: dict[str, Any]) -> None:
        """Say nothing."""


def run(
    scenario: str | Path | Scenario,
    overrides: Overrides = (),
    out: str | Path | None = None,
    observer: Observer | None = None,
    grid: Grid | None = None,
    library: Library | None = None,
    pictures: bool = True,
) -> RunDirectory:
    """Run a scenario to its end.

    Args:
        scenario: a path, the name of a shipped scenario, or a `Scenario`.
        overrides: dotted keys to values, or `key=value` strings.
        out: the run directory to make; by default a new one under `runs/`.
        observer: shows the run while it goes on.
        grid: Flower's grid, in a ServerApp; without one, `engine.kind = "flower"` starts its own
            SuperLink and Simulation Runtime.
        library: lends model, data and Ray workers to several runs of one process, one after
            another; close it at the end.
        pictures: whether curves and partition are drawn.

    Returns:
        The run directory: `.metrics`, `.summary`, `.adapter`.

    Raises:
        ScenarioError: before anything is trained.
        RunError: if it fails while it runs; `resume` goes on.
    """
    name = "run" if isinstance(scenario, Scenario) else Path(scenario).stem
    settled = settle_paths(load_scenario(scenario, overrides))
    path = Path(out) if out is not None else new_path(name)
    RunDirectory.check_free(path)
    holder: dict[str, RunDirectory] = {}
    check_trackers(settled)
    if settled.engine.kind == "flower" and grid is None:
        return run_on_flower(settled, path, observer or Silent())
    federation = build(
        settled,
        on_resolve=lambda r: holder["d"].write_engine(r.to_dict()),
        outer=grid,
        library=library,
        folder=path,
    )
    directory = holder["d"] = RunDirectory.create(path, settled)
    with directory.locked():
        _write_partition(federation, directory, pictures)
        state = start_state(federation, None)
        with closing(federation.engine):
            return _go(federation, state, directory, observer or Silent(), pictures)


def resume(
    path: str | Path,
    overrides: Overrides = (),
    observer: Observer | None = None,
    grid: Grid | None = None,
    library: Library | None = None,
    pictures: bool = True,
) -> RunDirectory:
    """Go on with a run that was stopped, or lengthen one that ended.

    Args:
        path: the run directory.
        overrides: `run.rounds`, `run.eval_every` or `run.checkpoint_every`; the rest is settled.
        observer: shows the run while it goes on.
        grid: Flower's grid, in a ServerApp.
        library: lends model, data and Ray workers to several runs of one process, one after
            another; close it at the end.
        pictures: whether curves and partition are drawn.

    Raises:
        ScenarioError: if it is no run directory, or another key is overridden.
    """
    directory = RunDirectory.open(Path(path))
    scenario = overridden(directory, overrides)
    found = load_checkpoint(directory.checkpoints)
    check_resumable(directory, scenario, found.round if found else 0)
    outside = scenario.engine.kind == "flower" and grid is None
    with directory.locked():
        if outside:
            directory.write_scenario(scenario)
        else:
            watch = observer or Silent()
            return _resume(directory, scenario, found, watch, grid, library, pictures)
    return run_on_flower(scenario, directory.path, observer or Silent(), resume=True)


def _resume(
    directory: RunDirectory,
    scenario: Scenario,
    found: Checkpoint | None,
    observer: Observer,
    grid: Grid | None,
    library: Library | None,
    pictures: bool,
) -> RunDirectory:
    engine = directory.read_engine()
    federation = build(
        scenario,
        directory.read_partition(),
        Resolved.from_dict(engine) if engine else None,
        lambda resolved: directory.write_engine(resolved.to_dict()),
        grid,
        library,
        directory.path,
    )
    done = found.round if found else 0
    elsewhere = grid is None or (isinstance(grid, NodeGrid) and grid.clients_keep_their_own)
    if not elsewhere and done and (why := what_clients_keep(scenario)):
        _check_kept(directory, why)
    directory.write_scenario(scenario)
    _write_partition(federation, directory, pictures)
    directory.forget_after(done)
    with closing(federation.engine):
        return _go(federation, start_state(federation, found), directory, observer, pictures)


def _check_kept(directory: RunDirectory, why: str) -> None:
    if not (directory.path / KEPT).is_dir():
        raise ScenarioError(
            f"{str(directory.path)!r}: holds nothing that clients kept to go on with; give 'out' "
            f"from the start when a run with {why} is to be resumed"
        )


def _write_partition(federation: Federation, directory: RunDirectory, draw: bool) -> None:
    task, picture = federation.task, directory.path / "partition.png"
    if not isinstance(task.clients, DealtRows):
        return
    directory.write_partition(task.clients.parts)
    if draw and task.train.labels is not None and not picture.exists():
        draw_partition(picture, task.clients.parts, task.train.labels, task.classes)


def check_resumable(directory: RunDirectory, scenario: Scenario, done: int) -> None:
    """Raise `ScenarioError` if a run of so many finished rounds cannot go on as a scenario says."""
    if scenario.run.rounds < done:
        raise ScenarioError(f"run.rounds = {scenario.run.rounds}: {done} rounds are done already")
    written = [line["round"] for line in directory.metrics][:done]
    if written != list(range(1, done + 1)):
        raise ScenarioError(
            f"{str(directory.path)!r}: metrics.jsonl misses rounds of the {done} that are done"
        )


def overridden(directory: RunDirectory, overrides: Overrides) -> Scenario:
    """The scenario of a run that goes on; `ScenarioError` if more than its length changes."""
    file = directory.path / "scenario.toml"
    before = settle_rounds(load_scenario(file))
    after = load_scenario(before, overrides)
    allowed = before.model_dump()
    for key in RESUMABLE:
        section, name = key.split(".")
        allowed[section][name] = getattr(getattr(after, section), name)
    if after.model_dump() != validate(allowed).model_dump():
        raise ScenarioError(f"--set: a resumed run can change: {', '.join(RESUMABLE)}")
    return after


def _go(
    federation: Federation,
    state: ServerState,
    directory: RunDirectory,
    observer: Observer,
    pictures: bool,
) -> RunDirectory:
    if isinstance(federation.serving, NodeGrid):
        known = federation.serving.directory
        directory.write_nodes({client: known.node(client) for client in known.clients})
    if state.round < federation.scenario.run.rounds:
        directory.forget_summary()
    tracked = Tracked(directory, federation.scenario, observer)
    try:
        state = run_rounds(federation, state, directory, tracked)
    finally:
        tracked.close()
    if (directory.path / KEPT).is_dir():
        federation.store.kept = FileStore(directory.path / KEPT, state.round + 1).latest()
    save_result(federation, state.arrays, directory)
    if pictures:
        draw_run(federation, state, directory)
    clients = by_client(federation, state)
    if clients is not None:
        directory.write_clients(clients)
    directory.write_summary(summarise(federation, state, directory, clients))
    return directory


def new_path(name: str) -> Path:
    """A run directory of that name under `runs/` that does not exist yet."""
    stem = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = stem, 1
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}-{number}")
    return path
