"""Cohorts on Ray workers against one process: clients a second, start-up, memory.

The same run with one process of one thread, one process of all cores, and one worker of one thread
a core, in turn; rounds 2 and later, medians. MiniLM (scripts/get_encoder.py) on built-in words, so
that a client is some work, and the quickstart, where it is not.

    .venv/bin/python scripts/bench_workers.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fedtune

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
COMMON = {"run.eval_every": 100, "run.checkpoint_every": 100, "run.rounds": 6}
JOBS: dict[str, dict[str, Any]] = {
    "MiniLM, 16 clients of 4 steps of 8": {
        "task.kind": "text-classification", "task.base": ENCODER, "task.data": "builtin:intents",
        "clients.count": 32, "clients.partition": {"kind": "iid"},
        "clients.participation.value": 0.5, "local.epochs": None, "local.steps": 4,
    },
    "quickstart": {},
}  # fmt: skip


class Clock:
    """Notes when the first round began."""

    begun = 0.0

    def started(self, run: Any) -> None:
        self.begun = time.perf_counter()

    def finished_round(self, line: dict[str, Any]) -> None:
        """Nothing."""


def once(overrides: dict[str, Any]) -> dict[str, float]:
    """One run."""
    clock, began = Clock(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = fedtune.run("quickstart", {**COMMON, **overrides}, Path(folder) / "run", clock,
                          pictures=False)  # fmt: skip
        lines = run.metrics[1:-1]
        rate = statistics.median(line["clients"] / line["seconds_train"] for line in lines)
        loss = run.summary["final"]["loss"]
    whole = time.perf_counter() - began
    return {"rate": rate, "start_up": clock.begun - began, "loss": loss, "whole": whole}


def main() -> None:
    """Measure and print a table; JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    cores = os.cpu_count() or 1
    ways = {
        "one process, one thread": {"engine.threads": 1},
        f"one process, {cores} threads": {"engine.threads": cores},
        f"{cores} workers of one thread": {"engine.threads": 1, "engine.workers": cores},
    }
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, job in JOBS.items():
        found[name] = {way: [] for way in ways}
        for _ in range(asked.repeats):
            for way, settings in ways.items():
                found[name][way].append(once({**job, **settings}))
    if asked.json:
        json.dump(found, sys.stdout, indent=1)
        return
    lines = ["| job | how | clients/s (least to greatest) | until round 1 s | final loss |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, ways_found in found.items():
        for way, repeats in ways_found.items():
            rates = sorted(one["rate"] for one in repeats)
            start = statistics.median(one["start_up"] for one in repeats)
            lines.append(
                f"| {name} | {way} | {statistics.median(rates):.2f} ({rates[0]:.2f}–"
                f"{rates[-1]:.2f}) | {start:.1f} | {repeats[0]['loss']:.5f} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
