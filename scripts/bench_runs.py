"""Whole runs on three engines, side by side: cohort, sequential, Flower's Simulation Runtime.

Every run is a process of its own, `fedtune run ... --set engine.kind=...`, in turn within each
repeat.
*With start-up*: client updates over the whole life of the process: imports, model, data, Ray.
*Without*: client updates of rounds 2 and later over their training time, messages included.

    scripts/bench_engines runs                # about 12 minutes on 2 CPU cores
    scripts/bench_engines runs --work quickstart --repeats 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent.parent / "docs" / "benchmarks"
ENGINES = ("cohort", "sequential", "flower")
WORKS: dict[str, dict[str, Any]] = {
    "quickstart": {"scenario": "quickstart", "set": {}},
    "one-step": {
        "scenario": "quickstart",
        "set": {
            "local.steps": 1, "clients.participation.value": 1.0, "run.rounds": 10,
            "run.eval_every": 10,
        },
    },
    "encoder-22m": {
        "scenario": "banking77",
        "set": {
            "task.train_examples": 1280, "task.test_examples": 100, "clients.count": 20,
            "clients.participation.value": 0.4, "local.batch_size": 16, "run.rounds": 4,
            "run.eval_every": 100,
        },
    },
}  # fmt: skip


def one_run(work: dict[str, Any], engine: str) -> dict[str, float]:
    """Seconds of the process, and client updates a second without start-up."""
    over = {**work["set"], "engine.kind": engine}
    sets = [part for key, value in over.items() for part in ("--set", f"{key}={value}")]
    fedtune = Path(sys.executable).parent / "fedtune"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [str(fedtune), "run", work["scenario"], *sets, "--out", str(out), "--json"]
        began = time.perf_counter()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        whole = time.perf_counter() - began
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    updates = sum(line["clients"] for line in lines)
    warm = lines[1:]
    return {
        "with": updates / whole,
        "without": sum(w["clients"] for w in warm) / sum(w["seconds_train"] for w in warm),
        "seconds": whole,
    }


def measure(name: str, repeats: int) -> dict[str, Any]:
    """All engines in turn, `repeats` times; ratios are cohort over the engine in a repeat."""
    runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
    for _ in range(repeats):
        for engine in ENGINES:
            runs[engine].append(one_run(WORKS[name], engine))
            print(name, engine, {k: round(v, 2) for k, v in runs[engine][-1].items()}, flush=True)
    found: dict[str, Any] = {"work": name}
    for engine in ENGINES:
        for key in ("with", "without", "seconds"):
            found[f"{engine}_{key}"] = statistics.median(run[key] for run in runs[engine])
        for key in ("with", "without"):
            ratios = [c[key] / e[key] for c, e in zip(runs["cohort"], runs[engine], strict=True)]
            found[f"{engine}_ratio_{key}"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| work | start-up | cohort /s | sequential /s | Flower (Ray) /s "
        "| cohort ÷ sequential | cohort ÷ Flower |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for key in ("with", "without"):
            ratios = [row[f"{engine}_ratio_{key}"] for engine in ("sequential", "flower")]
            shown = [f"{middle:.1f} ({low:.1f}–{high:.1f})" for middle, low, high in ratios]
            speeds = [f"{row[f'{engine}_{key}']:.2f}" for engine in ENGINES]
            lines.append(f"| {row['work']} | {key} | {' | '.join(speeds)} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    rows = [measure(name, arguments.repeats) for name in arguments.work]
    found = {
        "cores": os.cpu_count(), "machine": platform.machine(), "rows": rows,
        "command": "scripts/bench_engines runs " + " ".join(sys.argv[1:]),
    }  # fmt: skip
    (arguments.out / "runs.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "runs.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
