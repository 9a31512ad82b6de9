"""comparison.json: all that tables, pictures and page show, computed from the cells' directories.

A single run makes the same record, with one family and one cell.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedtune.comparison.claims import Record, claim_record
from fedtune.comparison.differences import add_lost_under_attack, differences
from fedtune.comparison.directory import ComparisonDirectory
from fedtune.comparison.grid import label_of
from fedtune.comparison.measure import (
    better_is_lower,
    client_values,
    default_metric,
    looks_of,
    measure,
    reported,
)
from fedtune.comparison.statistics import (
    LEVEL,
    POWER,
    RANK_SEEDS,
    spread,
)
from fedtune.comparison.tuning import at_edge
from fedtune.privacy.spending import spending
from fedtune.reporting.measures import MEASURES
from fedtune.reporting.privacy import statement
from fedtune.runs.directory import RunDirectory
from fedtune.runs.privacy import ledger_of
from fedtune.scenario import Scenario, dump_scenario
from fedtune.scenario.compare import CompareSection
from fedtune.scenario.loading import validate
from fedtune.version import versions

FORMAT, WAY_TO_TARGET = 1, 0.95


def comparison_record(directory: ComparisonDirectory) -> Record:
    """The record of a comparison as it stands, finished or not."""
    grid = directory.grid
    section = CompareSection.model_validate(grid["compare"])
    scenario = validate(tomllib.loads(grid["scenario"]))
    metric = grid["metric"]
    rows = [row for row in grid["families"] if row["reason"] is None]
    by_label = {row["label"]: row for row in rows}
    reference = by_label.get(grid["reference"])
    target = _target(directory.path, reference, metric, section) if reference else None
    families = [_family(directory.path, row, metric, target, section) for row in rows]
    add_lost_under_attack(families, metric)
    for family in families:
        family["measures"] = _spreads(family["cells"])
    record = {
        **_head("comparison", grid["name"], scenario, metric, target),
        **{key: grid[key] for key in ("command", "versions", "device", "axes")},
        **{key: getattr(section, key) for key in ("seeds", "tune", "tune_seeds", "validation")},
        "budget": {"kind": section.budget.kind, "amount": grid["amount"]},
        "reference": grid["reference"],
        "families": families,
        "privacy": None,
        "skipped": [_only(r, "label", "over", "reason") for r in grid["families"] if r["reason"]],
        "differences": differences(families, grid["reference"], metric),
    }
    return {**record, "claim": claim_record(section.claim, record) if section.claim else None}


def run_record(directory: RunDirectory) -> Record:
    """The record of one run as it stands, finished or not."""
    scenario, looks = directory.scenario, looks_of(directory)
    metric = default_metric(looks[-1]["eval"]) if looks else "loss"
    name, title = scenario.strategy.name, directory.path.resolve().name
    cell = {"seed": scenario.run.seed, "rounds": scenario.run.rounds, "directory": "."}
    row: Record = {"label": name, "over": {}, "strategy": name, "chosen": {}, "trials": []}
    row["cells"] = [{**cell, "problem": None}]
    family = _family(directory.path, row, metric, None, CompareSection())
    family["measures"] = _spreads([{**one, "status": "done"} for one in family["cells"]])
    return {
        **_head("run", title, scenario, metric, None),
        "command": f"fedtune run {title}/scenario.toml",
        "versions": directory.summary.get("versions") or versions(),
        "device": directory.summary.get("device", scenario.engine.device),
        **{"axes": {}, "seeds": 1, "tune": {}, "tune_seeds": 0, "validation": None},
        **{"budget": {"kind": "rounds", "amount": None}, "reference": None},
        "privacy": _privacy(scenario, directory.path),
        **{"families": [family], "skipped": [], "differences": [], "claim": None},
    }


def _privacy(scenario: Scenario, path: Path) -> Record | None:
    """What a run's ledger says, finished or not."""
    assert scenario.task.data is not None
    found = spending(scenario.privacy, scenario.task.data, ledger_of(scenario, path))
    return found and {**found, "statement": statement(found)}


def _head(kind: str, name: str, scenario: Scenario, metric: str, target: float | None) -> Record:
    return {
        "format": FORMAT,
        "kind": kind,
        "name": name,
        "task": {
            "kind": scenario.task.kind,
            "base": scenario.task.base,
            "data": scenario.task.data,
        },
        "clients": scenario.clients.count,
        "metric": metric,
        "evaluated_on": evaluated_on(scenario),
        "early_stopping": scenario.run.early_stopping is not None,
        "lower_is_better": better_is_lower(metric),
        "target": target,
        "level": LEVEL,
        "power": POWER,
        "rank_seeds": RANK_SEEDS,
        "scenario": dump_scenario(scenario),
    }


def evaluated_on(scenario: Scenario) -> str:
    """What the metric of a scenario is measured on."""
    if scenario.task.head == "local":
        return "what clients hold out"
    return "the test data" if scenario.task.validation is None else "validation data"


def _target(
    path: Path, row: Mapping[str, Any], metric: str, section: CompareSection
) -> float | None:
    """The scenario's, or 95 % of the way of the reference's mean, from first to last."""
    if section.target is not None:
        return section.target
    ways = []
    for cell in row["cells"]:
        looks = looks_of(RunDirectory(path / cell["directory"]))
        if len(looks) > 1 and looks[0]["round"] == 0:
            ends = [look["eval"].get(metric) for look in (looks[0], looks[-1])]
            if None not in ends:
                ways.append(ends)
    if not ways:
        return None
    first, last = np.asarray(ways, dtype=np.float64).mean(0)
    return float(first + WAY_TO_TARGET * (last - first))


def _family(
    path: Path, row: Mapping[str, Any], metric: str, target: float | None, section: CompareSection
) -> Record:
    cells = [_cell(path, cell, metric, target) for cell in row["cells"]]
    return {
        **_only(row, "label", "over", "strategy", "chosen"),
        "weights": row.get("weights"),
        "trials": [
            {
                "values": t["values"],
                "score": t["score"],
                "label": label_of(t["values"]),
                "problems": [cell["problem"] for cell in t["cells"] if cell["problem"]],
            }
            for t in row["trials"]
        ],
        "at_edge": at_edge(row["chosen"], section.tune) if row["chosen"] else [],
        "cells": cells,
        "diverged": sum(c["status"] == "done" and c["measures"]["final"] is None for c in cells),
    }


def _cell(path: Path, cell: Mapping[str, Any], metric: str, target: float | None) -> Record:
    directory = RunDirectory(path / cell["directory"])
    lines = directory.metrics
    status = "done" if directory.summary else "running" if lines else "waiting"
    if cell["problem"] and status != "done":
        status = "failed"
    return {
        **_only(cell, "seed", "rounds", "directory", "problem"),
        "status": status,
        "rounds_done": len(lines),
        "left_out": directory.summary.get("left_out", {}),
        "measures": measure(directory, metric, target),
        "looks": looks_of(directory),
        "reported": reported(lines),
        "clients": client_values(directory, metric),
        "clients_measured_on": directory.clients.get("measured_on"),
    }


def _spreads(cells: Sequence[Mapping[str, Any]]) -> Record:
    """Each measure over the seeds that are done; None where no seed has it."""
    done = [cell["measures"] for cell in cells if cell["status"] == "done"]
    found: Record = {}
    for column in MEASURES:
        values = [one[column.key] for one in done if one.get(column.key) is not None]
        found[column.key] = asdict(spread(values)) if values else None
    return found


def _only(row: Mapping[str, Any], *keys: str) -> Record:
    return {key: row[key] for key in keys}
