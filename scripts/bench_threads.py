"""CPU threads: what `engine.threads = "auto"` chooses, against fixed numbers, alone and in company.

Each cell is a run in a process of its own; "two at once" are two such processes that begin
together, and the slower one counts.

    .venv/bin/python scripts/bench_threads.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
SPIN = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own default
JOBS = {
    "quickstart": ("quickstart", {"run.rounds": 15}),
    "wide": (
        "quickstart",
        {"run.rounds": 4, "local.batch_size": 128, "local.steps": 8, "adapter.rank": 32},
    ),
}
SETTINGS = {
    "auto": ("auto", {}),
    "1 thread": (1, {}),
    "2 threads, passive": (2, {"OMP_WAIT_POLICY": "PASSIVE"}),
    "2 threads, spinning": (2, SPIN),
}


def begin(job: str, setting: str, out: Path) -> subprocess.Popen[bytes]:
    """A run that goes on by itself."""
    scenario, changes = JOBS[job]
    threads, environment = SETTINGS[setting]
    clean = {name: value for name, value in os.environ.items() if name not in WAITS}
    options = {**changes, "engine.threads": threads}
    given = [part for k, v in options.items() for part in ("--set", f"{k}={v}")]
    command = [sys.executable, "-m", "fedtune", "run", scenario, *given, "--out", str(out)]
    return subprocess.Popen(
        command, env={**clean, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def measure(job: str, setting: str, together: int) -> tuple[float, list[int]]:
    """Clients a second of the slowest of runs that begin together, and the threads of each."""
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(number) for number in range(together)]
        for process in [begin(job, setting, out) for out in outs]:
            if process.wait():
                raise SystemExit(f"{job}, {setting}: the run failed")
        found = [json.loads((out / "summary.json").read_text()) for out in outs]
        threads = [json.loads((out / "engine.json").read_text())["threads"] for out in outs]
    return min(one["client_updates_per_second"] for one in found), threads


def main() -> None:
    """Print a table a job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", nargs="*", default=[*JOBS])
    parser.add_argument("--repeats", type=int, default=1)
    asked = parser.parse_args()
    for job in asked.jobs:
        print(f"\n| {job} | alone | two at once, each | threads |\n| --- | ---: | ---: | --- |")
        for setting in SETTINGS:
            rows = [[measure(job, setting, n) for n in (1, 2)] for _ in range(asked.repeats)]
            alone, company = (max(row[i][0] for row in rows) for i in (0, 1))
            used = sorted({count for row in rows for _, counts in row for count in counts})
            shown = ", ".join(map(str, used))
            print(f"| {setting} | {alone:.1f} | {company:.1f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
