"""The engine of a run: device, adapted base, backend."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch

from fedtune.adapters.wrap import Adapted, wrap
from fedtune.adversaries.setup import Adversary
from fedtune.cohort.absent import AbsentBackend
from fedtune.cohort.backend import Setting
from fedtune.cohort.checkpointing import checkpoint_layers
from fedtune.cohort.engine import Engine, Resolved
from fedtune.cohort.probe import choose_backend
from fedtune.cohort.start import check_start
from fedtune.errors import ScenarioError
from fedtune.runs.participations import scheduled_rounds
from fedtune.runs.strategies import adapter_kind, delivered_roles
from fedtune.runs.threads import auto_threads, own_threads
from fedtune.scenario.schema import EngineSection, Scenario
from fedtune.tasks.load import Task

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
PROBE_ROWS, START_ROWS = 8, 2


def prepare_torch(engine: EngineSection, resolved: Resolved | None) -> torch.device:
    """Threads and determinism as the scenario says, or as a run settled before; the device."""
    threads = resolved.threads if resolved else engine.threads
    torch.set_num_threads(threads if isinstance(threads, int) else own_threads())
    if engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(engine.deterministic)
    return torch.device(pick_device(resolved.device if resolved else engine.device))


def adapt(scenario: Scenario, task: Task, device: torch.device, dtype: torch.dtype) -> Adapted:
    """The base with its adapter; one without weights stays where it has none."""
    kind, head, seed = adapter_kind(scenario), scenario.task.head, scenario.run.seed
    place = torch.device("meta") if is_bare(task) else device
    delivers = delivered_roles(scenario)
    return wrap(task.base, scenario.adapter, kind, head, seed, place, dtype, delivers)


def is_bare(task: Task) -> bool:
    """Whether only the shapes of the base are here."""
    return str(task.base.model.device.type) == "meta"


def make_engine(
    scenario: Scenario,
    task: Task,
    adversary: Adversary,
    device: torch.device,
    dtype: torch.dtype,
    resolved: Resolved | None,
    on_resolve: Callable[[Resolved], None] = lambda resolved: None,
    threads: int | None = None,
) -> tuple[Engine, str | None]:
    """The engine, and why it is not the one that was asked for, if so.

    Args:
        resolved: what the engine settled, where a run is taken up again.
        on_resolve: told of each thing that the engine settles.
        threads: what `engine.threads = "auto"` is, where other runs have chosen it; by default it
            is chosen here.
    """
    section = scenario.engine
    adapted = adapt(scenario, task, device, dtype)
    if section.gradient_checkpointing:
        checkpoint_layers(adapted.model)
    setting = Setting(
        adapted,
        task.objective,
        adversary.train,
        scenario.local,
        scheduled_rounds(scenario),
        device,
        dtype,
        scenario.privacy.per_example,
    )
    wanted = resolved.backend if resolved else section.kind.replace("flower", "cohort")
    sample = np.arange(min(PROBE_ROWS, len(task.train)))
    if not is_bare(task):
        check_start(setting, sample[:START_ROWS])
    backend, reason = (
        (AbsentBackend(setting), None) if is_bare(task) else choose_backend(setting, wanted, sample)
    )
    if section.compile:
        torch.compiler.reset()  # else models of earlier runs count against the limit
        adapted.model.compile()
    if resolved is None and section.threads == "auto":
        torch.set_num_threads(threads or auto_threads(backend))
    settled = resolved or Resolved(backend.name, str(setting.device), torch.get_num_threads())
    return Engine(backend, setting, settled, section.cohort_size, on_resolve), reason


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
