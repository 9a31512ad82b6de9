"""What is written at the end of a run: its summary and its picture."""

from __future__ import annotations

import math
import platform
from typing import Any

from fedtune.cohort.sizing import peak_memory
from fedtune.privacy.spending import spending
from fedtune.reporting.curve import draw_curve
from fedtune.runs.build import Federation
from fedtune.runs.clientwise import worst_clients
from fedtune.runs.directory import RunDirectory
from fedtune.runs.loop import ServerState, engine_name
from fedtune.version import versions

SUMMED = (
    "bytes_down", "bytes_up", "framing_down", "framing_up", "seconds", "seconds_clients",
    "seconds_server", "client_steps",
)  # fmt: skip


def draw_run(federation: Federation, state: ServerState, directory: RunDirectory) -> None:
    """Draw the learning curve."""
    if not directory.looks:
        return
    task = federation.scenario.task
    where = "clients' held-out data" if task.head == "local" else "test data"
    title = (
        f"{federation.strategy.name} · {federation.scenario.adapter.kind} · {task.data}, {where}"
    )
    draw_curve(
        directory.path / "curve.png", [(0, dict(state.initial or {})), *directory.looks], title
    )


def summarise(
    federation: Federation,
    state: ServerState,
    directory: RunDirectory,
    clients: dict[str, Any] | None,
) -> dict[str, Any]:
    """What summary.json holds.

    Args:
        clients: what `by_client` found.
    """
    lines, looks = directory.metrics, directory.looks
    best = min(looks, key=lambda look: _rank(look[1]), default=None)
    totals = {key: sum(line.get(key, 0) for line in lines) for key in SUMMED}
    updates = sum(line["clients"] for line in lines)
    training = sum(line["seconds_train"] for line in lines)
    layout = federation.adapted.layout
    return {
        "final": looks[-1][1] if looks else {},
        "best": {**best[1], "round": best[0]} if best else {},
        "initial": state.initial,
        "rounds": state.round,
        **totals,
        "opening": directory.opening,
        "client_updates": updates,
        "client_updates_per_second": updates / training if training else 0.0,
        "peak_memory_bytes": peak_memory(federation.engine.setting.device),
        "peak_memory_bytes_workers": federation.engine.peaks(),
        "failures": sum(line["failures"] for line in lines),
        "rejected": sum(line["rejected"] for line in lines),
        "empty_clients": len(federation.task.clients) - len(federation.task.clients.eligible),
        "left_out": federation.task.left_out,
        "parameters_trained": layout.width,
        "parameters_sent": sum(spec.size for spec in layout.sent),
        "strategy": federation.strategy.name,
        "adapter": federation.scenario.adapter.kind,
        "clients": {"measured_on": clients["measured_on"], **worst_clients(clients["clients"])}
        if clients
        else None,
        "privacy": _spending(federation),
        "classes": federation.task.classes,
        "seed": federation.scenario.run.seed,
        "device": federation.engine.resolved.device,
        "engine": engine_name(federation),
        "resolved": federation.engine.resolved.to_dict(),
        "versions": {"python": platform.python_version(), **versions()},
    }


def _spending(federation: Federation) -> dict[str, Any] | None:
    budget = federation.budget
    return None if budget is None else spending(budget.section, budget.data, budget.ledger)


def _rank(found: dict[str, float | None]) -> tuple[float, float]:
    loss = found.get("loss")
    return -(found.get("accuracy") or 0.0), math.inf if loss is None else loss
