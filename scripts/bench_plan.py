"""What `fedtune plan` says against what `fedtune run` then needs: memory, time and bytes.

.venv/bin/python scripts/bench_plan.py            # a few minutes on 2 CPU cores
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent.parent / "docs" / "benchmarks" / "plan.md"
SMALL = {"task.train_examples": 1280, "task.test_examples": 200, "run.rounds": 6}
WORKS: list[tuple[str, dict[str, Any]]] = [
    ("quickstart", {}),
    ("quickstart", {"strategy.name": "ffa-lora", "local.batch_size": 32}),
    ("intents", {}),
    ("sums", {}),
    ("banking77", SMALL),
]


def fedtune(*arguments: str) -> dict[str, Any]:
    command = [str(Path(sys.executable).parent / "fedtune"), *arguments, "--json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def measure(name: str, over: dict[str, Any]) -> str:
    sets = [part for key, value in over.items() for part in ("--set", f"{key}={value}")]
    plan = fedtune("plan", name, *sets)
    with tempfile.TemporaryDirectory() as folder:
        done = fedtune("run", name, *sets, "--out", str(Path(folder) / "run"))
    memory = plan["memory_peak_bytes"] / done["peak_memory_bytes"]
    seconds = plan["seconds_total"] / done["seconds"]
    exact = all(plan[f"run_bytes_{way}"] == done[f"bytes_{way}"] for way in ("down", "up"))
    what = ", ".join([name, *(f"{key}={value}" for key, value in over.items())])
    return (
        f"| {what} | {plan['memory_peak_bytes'] / 2**20:.0f} "
        f"| {done['peak_memory_bytes'] / 2**20:.0f} | {memory:.2f} "
        f"| {plan['seconds_total']:.1f} | {done['seconds']:.1f} | {seconds:.2f} "
        f"| {'equal' if exact else 'DIFFERENT'} |"
    )


def main() -> None:
    rows = [
        "| scenario | planned MiB | peak MiB | ratio | planned s | took s | ratio | bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, over in WORKS:
        rows.append(measure(name, over))
        print(rows[-1], flush=True)
    OUT.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
