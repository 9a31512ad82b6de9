"""fedtune: federated fine-tuning of low-rank adapters."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fedtune.version import __version__
from fedtune.waiting import wait_passively

__all__ = [
    "RunDirectory",
    "Scenario",
    "__version__",
    "audit",
    "compare",
    "frame",
    "load_model",
    "load_scenario",
    "plan",
    "report",
    "resume",
    "run",
]

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

wait_passively()

if TYPE_CHECKING:
    from fedtune.audit.run import audit
    from fedtune.comparison.api import compare, frame, report
    from fedtune.runs.api import resume, run
    from fedtune.runs.directory import RunDirectory
    from fedtune.runs.export import load_model
    from fedtune.runs.plan import plan
    from fedtune.scenario import Scenario, load_scenario

_HOMES = {
    "audit": "fedtune.audit.run",
    "RunDirectory": "fedtune.runs.directory",
    "Scenario": "fedtune.scenario",
    "compare": "fedtune.comparison.api",
    "frame": "fedtune.comparison.api",
    "load_model": "fedtune.runs.export",
    "load_scenario": "fedtune.scenario",
    "plan": "fedtune.runs.plan",
    "report": "fedtune.comparison.api",
    "resume": "fedtune.runs.api",
    "run": "fedtune.runs.api",
}


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when a name that needs them is used."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
