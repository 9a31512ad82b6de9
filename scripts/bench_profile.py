"""Where a round's time goes: data, forward, backward, optimiser, aggregation, evaluation, the rest.

Each job of scripts/bench_peers.py runs in this process; the functions that do each part are timed,
less what they call of other parts, in rounds 2 and later. On a GPU every border waits for the card.

    .venv/bin/python scripts/bench_profile.py
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_peers import make_network
from peers.work import JOBS

import fedtune
from fedtune.apps.budget import Budget
from fedtune.apps.clients import CohortClients
from fedtune.apps.received import Received
from fedtune.cohort import together
from fedtune.cohort.engine import Engine
from fedtune.cohort.optimizer import StackedOptimizer
from fedtune.cohort.private import PrivateSteps
from fedtune.grids.metered import MeteredGrid
from fedtune.server.base import AdapterStrategy
from fedtune.tasks.base import Classification, Table
from fedtune.tasks.synthetic import SyntheticImages
from fedtune.tasks.tokens import TokenTable

OUT = Path(__file__).parent.parent / "docs" / "benchmarks" / "profile.md"
PARTS = ("forward", "backward", "optimiser", "data", "plans", "messages", "aggregation",
         "evaluation", "privacy", "ledger")  # fmt: skip
TIMED: list[tuple[Any, str, str]] = [
    *((table, "gather", "data") for table in (Table, TokenTable, SyntheticImages)),
    (together, "folded_batches", "data"),
    (together, "folded_parts", "data"),
    (Classification, "logits", "forward"),
    (Classification, "losses", "forward"),
    (torch.Tensor, "backward", "backward"),
    (StackedOptimizer, "step", "optimiser"),
    (torch.optim.AdamW, "step", "optimiser"),
    (torch.optim.SGD, "step", "optimiser"),
    (CohortClients, "_planned", "plans"),
    (Received, "view", "messages"),
    (CohortClients, "reply", "messages"),
    (MeteredGrid, "send_and_receive", "messages"),
    (AdapterStrategy, "configure_train", "messages"),
    (AdapterStrategy, "aggregate_train", "aggregation"),
    (Engine, "evaluate", "evaluation"),
    (Budget, "reserve", "ledger"),
    (PrivateSteps, "clipped", "privacy"),
    (PrivateSteps, "noised", "privacy"),
    (Engine, "train", "rest of training"),
]


class Clock:
    """Exclusive seconds of each part."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.counted: dict[str, float] = {}
        self._within: list[str] = ["rest of the round"]
        self._since = time.perf_counter()

    def switch(self) -> None:
        """Give the time since the last border to the part that ran."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.spent[self._within[-1]] += now - self._since
        self._since = now

    def wrapped(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """A function whose time is given to a part; what a generator does is done at once."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.switch()
            self._within.append(part)
            try:
                found = function(*args, **kwargs)
                return list(found) if hasattr(found, "__next__") else found
            finally:
                self.switch()
                self._within.pop()

        return timed

    def started(self, run: Any) -> None:
        """Nothing yet: the first round warms up."""

    def finished_round(self, line: dict[str, Any]) -> None:
        """Begin to count after the first round."""
        self.switch()
        if line["round"] == 1:
            self.spent.clear()
        self.counted = dict(self.spent)


def profile(overrides: dict[str, Any], rounds: int, threads: int) -> dict[str, float]:
    """Share of each part in a round."""
    clock = Clock()
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in TIMED]
    for (owner, name, part), (*_, original) in zip(TIMED, originals, strict=True):
        setattr(owner, name, clock.wrapped(original, part))
    more = {"run.rounds": rounds, "run.eval_every": 1, "engine.threads": threads}
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            fedtune.run("quickstart", {**overrides, **more}, run, clock, pictures=False)
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
    total = sum(clock.counted.values())
    return {part: seconds / total for part, seconds in clock.counted.items()}


def jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """What is profiled."""
    found = {}
    for name, work in JOBS.items():
        network = make_network(folder, *work.network) if work.network else {}
        found[name] = {**work.overrides, **network}
    found["quickstart"] = {}
    found["quickstart, private"] = {
        "privacy.mechanism": "example", "privacy.epsilon": 8.0, "privacy.clip": 1.0,
    }  # fmt: skip
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """Shares as Markdown."""
    parts = [*PARTS, "rest of training", "rest of the round"]
    lines = ["| job | " + " | ".join(parts) + " |", "|---|" + "---|" * len(parts)]
    for name, shares in found.items():
        cells = " | ".join(f"{shares[p]:.0%}" if p in shares else "–" for p in parts)
        lines.append(f"| {name} | {cells} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Profile, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: profile(overrides, asked.rounds, asked.threads)
            for name, overrides in jobs(Path(folder)).items()
        }
    asked.out.write_text(table(found), "utf-8")
    asked.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    sys.stdout.write(table(found))


if __name__ == "__main__":
    main()
