"""What a scenario leaves, as plain values without measured times: the two sides of a case."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedtune
from fedtune.adversaries.crafted import Knowledge
from fedtune.adversaries.setup import CRAFTED, check_attack
from fedtune.comparison.claims import claim_record
from fedtune.comparison.directory import ComparisonDirectory
from fedtune.comparison.execute import Execution
from fedtune.comparison.progress import ConsoleGrid
from fedtune.rules import aggregated
from fedtune.runs.strategies import make_strategy
from fedtune.tasks.library import Library
from fedtune.tasks.partition import partition
from tests.kits.key_files import write_files
from tests.kits.schema_keys import Overrides, scenario_of
from tests.rules.kit import updates

TINY: Overrides = {
    "task.train_examples": 48, "task.test_examples": 24, "clients.count": 4, "adapter.rank": 2,
    "local.steps": 2, "local.batch_size": 4, "local.optimizer": "sgd", "local.lr": 0.1,
    "engine.threads": 1, "engine.cohort_size": 4, "run.rounds": 2,
}  # fmt: skip
PASSED = ("seconds", "peak_memory", "framing")  # measured, or of settings that a message names
# Names of what was set, which differ whether or not it acts.
ECHOED = {
    "summary.json": {
        "seed", "strategy", "adapter", "opening", "measured_on", "mechanism", "delta",
        "accountant", "clip", "secret", "versions", "classes", "client_updates_per_second",
    },
    "opening.json": {"source", "revealed", "step", "examples"},
    "clients.json": {"measured_on"},
    "ledger.jsonl": {"run", "data"},
    "metrics.jsonl": set(),
    "engine.json": set(),
}  # fmt: skip
NOT_LOOKED_AT = ("scenario.toml", "adapter_config.json", "config.json", "preprocessor_config.json")


class Looks:
    """What scenarios leave; each is looked at once.

    Args:
        place: a folder for files and runs.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.files = place, write_files(place / "files")
        self.library = Library()
        self.found: dict[str, Any] = {}

    def of(self, look: Callable[[Looks, Overrides], Any], overrides: Overrides) -> Any:
        """What one of the looks below finds, from memory if it was asked before."""
        key = json.dumps([look.__name__, overrides], sort_keys=True)
        if key not in self.found:
            self.found[key] = look(self, overrides)
        return self.found[key]

    def run(self, overrides: Overrides) -> dict[str, Any]:
        """The files of a run of a few steps."""
        out = self.place / "run"
        shutil.rmtree(out, ignore_errors=True)
        scenario = scenario_of(self._placed({**TINY, **overrides}))
        builtin = f"{scenario.task.base} {scenario.task.data}".count("builtin:") == 2
        fedtune.run(scenario, (), out, library=None if builtin else self.library, pictures=False)
        return left(out)

    def rule(self, overrides: Overrides) -> list[float]:
        """What pre-aggregators and rule make of two rounds of made-up updates."""
        strategy = make_strategy(scenario_of(overrides))
        found = []
        for seed in (1, 2):
            made = updates(_rows(seed))
            found += aggregated(made, strategy.pre, strategy.rule).update.tolist()
        return found

    def server(self, overrides: Overrides) -> list[float]:
        """What the server optimiser makes of two rounds' aggregates."""
        optimizer = make_strategy(scenario_of(overrides)).server_optimizer
        assert optimizer is not None
        return [v for turn in (1, 2) for v in optimizer(_rows(turn)[0], turn).tolist()]

    def attack(self, overrides: Overrides) -> list[float]:
        """What a malicious client sends instead of its update."""
        scenario = scenario_of({**overrides, "adapter.kind": "lora"})
        check_attack(scenario)
        made = CRAFTED[scenario.attack.kind](**scenario.attack.parameters())
        honest = _rows(1)[:6] + 0.3
        known = Knowledge(honest, 8, 2, _median, torch.Generator().manual_seed(0))
        sent: list[float] = made(known, _rows(2)[0]).tolist()
        return sent

    def partition(self, overrides: Overrides) -> list[list[int]]:
        """Which rows each client holds, of sixty in five classes."""
        section = scenario_of(overrides).clients.partition
        labels = np.random.default_rng(0).integers(0, 5, 60)
        return [part.tolist() for part in partition(labels, section, 4, 0)]

    def grid(self, overrides: Overrides) -> Any:
        """What a comparison will train, and how it will choose and judge; nothing is trained."""
        scenario = scenario_of(self._placed({**TINY, **overrides}))
        folder = ComparisonDirectory(self.place / "comparison")
        made = Execution(scenario, folder, ConsoleGrid(quiet=True), "name", "command")
        made.check()
        rows = [
            {
                "label": row.family.label,
                "trials": [[t.values, *(cell.digest for cell in t.cells)] for t in row.trials],
                "cells": [cell.digest for cell in row.cells],
            }
            for row in made.rows
        ]
        groups = [[row.family.label for row in group] for group in made._groups()]
        return {"rows": rows, "groups": groups, "reference": made.reference.family.label,
                "metric": made.metric}  # fmt: skip

    def claim(self, overrides: Overrides) -> list[dict[str, Any]]:
        """The verdict on a claim from made-up results of three families under six seeds."""
        section = scenario_of(overrides).compare
        assert section is not None
        assert section.claim is not None
        found = claim_record(section.claim, RESULTS)
        keys = ("values", "difference", "ratio", "p", "sign", "verdict")
        return [{key: part[key] for key in keys} for part in found["parts"]]

    def _placed(self, overrides: Overrides) -> dict[str, Any]:
        """With `FILES` in values as the folder of the files."""
        return {
            key: value.replace("FILES", str(self.files)) if isinstance(value, str) else value
            for key, value in overrides.items()
        }


def left(folder: Path) -> dict[str, Any]:
    """What a run directory holds, file by file, less times and echoes of the scenario."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, place = file.name, file.relative_to(folder).as_posix()
        if name in NOT_LOOKED_AT or name.startswith(".") or "tensorboard" in place:
            continue
        if place.startswith("checkpoints/"):
            found[place] = "here"
        elif file.suffix == ".jsonl":
            lines = file.read_text("utf-8").splitlines()
            found[place] = [_plain(json.loads(line), ECHOED[name]) for line in lines]
        elif file.suffix == ".json":
            found[place] = _plain(json.loads(file.read_text("utf-8")), ECHOED.get(name, set()))
        elif file.suffix == ".npz":
            with np.load(file) as stored:
                found[place] = {key: stored[key].tolist() for key in stored}
        else:
            found[place] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def apart(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two values of `left` differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = sorted(one.keys() | other.keys())
        return [
            where for key in keys for where in apart(one.get(key), other.get(key), f"{place}/{key}")
        ]
    return [] if one == other else [place]


def _plain(value: Any, echoed: set[str]) -> Any:
    if isinstance(value, dict):
        return {
            key: _plain(inner, echoed)
            for key, inner in value.items()
            if key not in echoed and not key.startswith(PASSED)
        }
    return [_plain(inner, echoed) for inner in value] if isinstance(value, list) else value


def _rows(seed: int) -> torch.Tensor:
    """Nine updates of forty numbers; two of them are far from the others."""
    rows = np.random.default_rng(seed).normal(size=(9, 40))
    rows[7:] *= 4.0
    return torch.from_numpy(rows)


def _median(rows: torch.Tensor) -> torch.Tensor:
    return rows.median(0).values


def _results() -> dict[str, Any]:
    """Three families with a metric and bytes under six seeds."""
    draw = np.random.default_rng(5)
    families = []
    for name, rate, mean in (("new", "a", 0.93), ("new", "b", 0.9), ("old", "a", 0.91)):
        cells = [
            {"seed": seed, "status": "done", "reported": {},
             "measures": {"final": mean + float(draw.normal(0.0, 0.004)),
                          "bytes_up": 100.0 * len(rate + name) * mean}}
            for seed in range(6)
        ]  # fmt: skip
        families.append({"over": {"strategy.name": name, "rate": rate}, "cells": cells})
    return {"families": families, "lower_is_better": False, "seeds": 6, "metric": "accuracy"}


RESULTS = _results()
