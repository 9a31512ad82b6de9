"""Runs from Python: `fedtune.run("quickstart", {"run.rounds": 5})`."""

from __future__ import annotations

import math
import platform
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from flwr.serverapp import Grid

from fedtune.apps.store import KEPT, FileStore
from fedtune.cohort.engine import Resolved
from fedtune.cohort.sizing import peak_memory
from fedtune.errors import ScenarioError
from fedtune.grids.node_grid import NodeGrid
from fedtune.report.curve import draw_curve
from fedtune.report.partition import draw_partition
from fedtune.runs.build import Federation, build, settle_paths
from fedtune.runs.checkpoints import load_checkpoint
from fedtune.runs.directory import RunDirectory
from fedtune.runs.export import save_result
from fedtune.runs.loop import (
    Observer,
    ServerState,
    Started,
    engine_name,
    run_rounds,
    start_state,
)
from fedtune.runs.superlink import run_on_flower
from fedtune.runs.tracking import Tracked, check_trackers
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.loading import Overrides, validate
from fedtune.tasks.clients import DealtRows
from fedtune.version import __version__

PACKAGES = ("flwr", "numpy", "peft", "torch", "transformers")
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
) -> RunDirectory:
    """Run a scenario to its end.

    Args:
        scenario: a path, the name of a shipped scenario, or a `Scenario`.
        overrides: dotted keys to values, or `key=value` strings.
        out: the run directory to make; by default a new one under `runs/`.
        observer: shows the run while it goes on.
        grid: Flower's grid, in a ServerApp; without one, `engine.kind = "flower"` starts its own
            SuperLink and Simulation Runtime.

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
        settled, on_resolve=lambda r: holder["d"].write_engine(r.to_dict()), outer=grid
    )
    directory = holder["d"] = RunDirectory.create(path, settled)
    _write_partition(federation, directory)
    return _go(federation, start_state(federation, None), directory, observer or Silent())


def resume(
    path: str | Path,
    overrides: Overrides = (),
    observer: Observer | None = None,
    grid: Grid | None = None,
) -> RunDirectory:
    """Go on with a run that was stopped, or lengthen one that ended.

    Args:
        path: the run directory.
        overrides: `run.rounds`, `run.eval_every` or `run.checkpoint_every`; the rest is settled.
        observer: shows the run while it goes on.
        grid: Flower's grid, in a ServerApp.

    Raises:
        ScenarioError: if it is no run directory, or another key is overridden.
    """
    directory = RunDirectory.open(Path(path))
    scenario = _overridden(directory, overrides)
    found = load_checkpoint(directory.checkpoints)
    _check_resumable(directory, scenario, found.round if found else 0)
    if scenario.engine.kind == "flower" and grid is None:
        directory.write_scenario(scenario)
        return run_on_flower(scenario, directory.path, observer or Silent(), resume=True)
    engine = directory.read_engine()
    federation = build(
        scenario,
        directory.read_partition(),
        Resolved.from_dict(engine) if engine else None,
        lambda resolved: directory.write_engine(resolved.to_dict()),
        grid,
    )
    directory.write_scenario(scenario)
    _write_partition(federation, directory)
    directory.forget_after(found.round if found else 0)
    state = start_state(federation, found)
    return _go(federation, state, directory, observer or Silent())


def frame(path: str | Path) -> pd.DataFrame:
    """A run as a pandas DataFrame: `fedtune.frame("runs/first")["eval/accuracy"].plot()`.

    Raises:
        ScenarioError: if it is no run directory.
    """
    return RunDirectory.open(Path(path)).frame()


def _write_partition(federation: Federation, directory: RunDirectory) -> None:
    task, picture = federation.task, directory.path / "partition.png"
    if not isinstance(task.clients, DealtRows):
        return
    directory.write_partition(task.clients.parts)
    if task.train.labels is not None and not picture.exists():
        draw_partition(picture, task.clients.parts, task.train.labels, task.classes)


def _check_resumable(directory: RunDirectory, scenario: Scenario, done: int) -> None:
    if scenario.run.rounds < done:
        raise ScenarioError(f"run.rounds = {scenario.run.rounds}: {done} rounds are done already")
    written = [line["round"] for line in directory.metrics][:done]
    if written != list(range(1, done + 1)):
        raise ScenarioError(
            f"{str(directory.path)!r}: metrics.jsonl misses rounds of the {done} that are done"
        )


def _overridden(directory: RunDirectory, overrides: Overrides) -> Scenario:
    file = directory.path / "scenario.toml"
    before, after = load_scenario(file), load_scenario(file, overrides)
    allowed = before.model_dump()
    for key in RESUMABLE:
        section, name = key.split(".")
        allowed[section][name] = getattr(getattr(after, section), name)
    if after.model_dump() != validate(allowed).model_dump():
        raise ScenarioError(f"--set: a resumed run can change: {', '.join(RESUMABLE)}")
    return after


def _go(
    federation: Federation, state: ServerState, directory: RunDirectory, observer: Observer
) -> RunDirectory:
    if isinstance(federation.serving, NodeGrid):
        known = federation.serving.directory
        directory.write_nodes({client: known.node(client) for client in known.clients})
    tracked = Tracked(directory, federation.scenario, observer)
    try:
        state = run_rounds(federation, state, directory, tracked)
    finally:
        tracked.close()
    if (directory.path / KEPT).is_dir():
        store = FileStore(directory.path / KEPT, state.round + 1)
        federation.store.kept = store.latest()
    save_result(federation, state.arrays, directory)
    directory.write_summary(summarise(federation, state, directory))
    _draw(federation, state, directory)
    return directory


def _draw(federation: Federation, state: ServerState, directory: RunDirectory) -> None:
    task = federation.scenario.task
    where = "clients' held-out data" if task.head == "local" else "test data"
    title = (
        f"{federation.strategy.name} · {federation.scenario.adapter.kind} · {task.data}, {where}"
    )
    draw_curve(
        directory.path / "curve.png", [(0, dict(state.initial or {})), *directory.looks], title
    )


def summarise(
    federation: Federation, state: ServerState, directory: RunDirectory
) -> dict[str, Any]:
    """What summary.json holds."""
    lines, looks = directory.metrics, directory.looks
    best = min(looks, key=lambda look: _rank(look[1]), default=None)
    totals = {
        key: sum(line[key] for line in lines)
        for key in ("bytes_down", "bytes_up", "framing_down", "framing_up", "seconds")
    }
    updates = sum(line["clients"] for line in lines)
    training = sum(line["seconds_train"] for line in lines)
    layout = federation.adapted.layout
    return {
        "final": looks[-1][1] if looks else {},
        "best": {**best[1], "round": best[0]} if best else {},
        "initial": state.initial,
        "rounds": state.round,
        **totals,
        "client_updates": updates,
        "client_updates_per_second": updates / training if training else 0.0,
        "peak_memory_bytes": peak_memory(federation.engine.setting.device),
        "failures": sum(line["failures"] for line in lines),
        "rejected": sum(line["rejected"] for line in lines),
        "empty_clients": len(federation.task.clients) - len(federation.task.clients.eligible),
        "parameters_trained": layout.width,
        "parameters_sent": sum(spec.size for spec in layout.sent),
        "strategy": federation.strategy.name,
        "adapter": federation.scenario.adapter.kind,
        "classes": federation.task.classes,
        "seed": federation.scenario.run.seed,
        "device": federation.engine.resolved.device,
        "engine": engine_name(federation),
        "resolved": federation.engine.resolved.to_dict(),
        "versions": {"python": platform.python_version(), **versions()},
    }


def _rank(found: dict[str, float | None]) -> tuple[float, float]:
    loss = found.get("loss")
    return -(found.get("accuracy") or 0.0), math.inf if loss is None else loss


def versions() -> dict[str, str]:
    """Versions of what decides a result; fedtune's own also where it is not installed."""
    found = {"fedtune": __version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def new_path(name: str) -> Path:
    """A run directory of that name under `runs/` that does not exist yet."""
    stem = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = stem, 1
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}-{number}")
    return path
