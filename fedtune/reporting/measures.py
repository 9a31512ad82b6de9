"""What is shown of runs and comparisons: names, units and how a number is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["metric", "count", "bytes", "seconds", "number"]
SHARES = frozenset({"accuracy", "exact_match", "token_accuracy", "attack_success"})
MIB = 2**20


@dataclass(frozen=True)
class Measure:
    """One column.

    Attributes:
        key: in comparison.json.
        title: of the column; `{metric}` stands for the metric that decides.
        unit: decides how a number is written.
        meaning: one line for a reader who was not there.
    """

    key: str
    title: str
    unit: Unit
    meaning: str


RESULTS = (
    Measure("final", "final {metric}", "metric", "after the last round, on {where}"),
    Measure("best", "best {metric}", "metric", "of any round, which flatters"),
    Measure(
        "lost_under_attack", "lost under attack", "metric",
        "final metric without the attack, less that with it",
    ),
    Measure("worst_client", "worst client", "metric", "whom the final model serves worst"),
    Measure("p10_client", "10th percentile client", "metric", "one client in ten is served worse"),
    Measure("epsilon", "ε", "number", "largest privacy loss of a client over the whole run"),
)  # fmt: skip
COSTS = (
    Measure("rounds_to_target", "rounds to target", "count", "until the target is first reached"),
    Measure("bytes_up_to_target", "up to target", "bytes", "payload that clients sent until then"),
    Measure("seconds_to_target", "time to target", "seconds", "on this machine, until then"),
    Measure("rounds", "rounds", "count", "trained"),
    Measure("bytes_up", "up", "bytes", "payload that all clients sent, before round 1 too"),
    Measure("bytes_down", "down", "bytes", "payload that all clients received, likewise"),
    Measure("client_steps", "client steps", "count", "optimiser steps of all clients together"),
    Measure("seconds_clients", "client time", "seconds", "training and messages, on this machine"),
    Measure("seconds_server", "server time", "seconds", "sampling and aggregation"),
    Measure("seconds", "whole time", "seconds", "with evaluations"),
    Measure("peak_memory_bytes", "peak memory", "bytes", "of the process or the GPU"),
)
MEASURES = (*RESULTS, *COSTS)


WEIGHTS, WEIGHTS_MEANING = (
    "weights",
    "reported: a client counts by its number of examples; capped: by so many at most; uniform: all "
    "alike; importance: alike, over its probability to take part",
)


def written(value: float | None, unit: Unit, metric: str, signed: bool = False) -> str:
    """A number as it stands in tables: shares in percent, bytes in MiB.

    Args:
        metric: what decides; tells how values of unit `metric` are written.
        signed: with + before positive ones, and shares as percentage points.
    """
    if value is None or not math.isfinite(value):
        return "–"
    sign = "+" if signed else ""
    if unit == "metric" and metric in SHARES:
        return f"{value * 100:{sign}.1f}" + ("" if signed else " %")
    if unit == "metric" or unit == "number":
        return f"{value:{sign}.3g}" if abs(value) < 100 else f"{value:{sign},.0f}"
    if unit == "bytes":
        return (
            f"{value / MIB:{sign}.2f} MiB" if value < 100 * MIB else f"{value / MIB:{sign},.0f} MiB"
        )
    if unit == "seconds":
        return f"{value:{sign}.2g} s" if abs(value) < 10 else f"{value:{sign},.0f} s"
    whole = value == int(value) or abs(value) >= 100
    return f"{value:{sign},.0f}" if whole else f"{value:{sign},.1f}"


def shown(value: Any) -> str:
    """A value of a scenario in a label."""
    if isinstance(value, Mapping):
        return " ".join(map(shown, value.values()))
    if isinstance(value, list):
        return "/".join(map(shown, value)) or "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def difference_unit(metric: str) -> str:
    """What a difference of the metric is counted in."""
    return "points" if metric in SHARES else ""


def p_written(p: float | None) -> str:
    """A p value as it stands in tables."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
