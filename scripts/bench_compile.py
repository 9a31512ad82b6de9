"""`engine.compile` against none: clients a second once compiled, and what compiling takes.

The jobs of scripts/bench_workers.py and a small one of scripts/bench_peers.py, in turn; medians of
rounds 2 to 11. What compiling takes is told by the first run, which finds no cache; later ones do.

    .venv/bin/python scripts/bench_compile.py              # --device cuda --precision bfloat16
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile

import torch
from bench_workers import COMMON, once
from bench_workers import JOBS as WORKERS
from peers.work import JOBS as PEERS

JOBS = {**WORKERS, "vit-6": PEERS["vit-6"].overrides}
LATER = {**COMMON, "run.rounds": 12}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    asked = parser.parse_args()
    place = {"engine.device": asked.device, "engine.precision": asked.precision}
    sys.stdout.write("| job | plain clients/s | compiled clients/s | compiled ÷ plain | "
                     "longer, s |\n|---|---|---|---|---|\n")  # fmt: skip
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else it would go on as it is
    for name, job in JOBS.items():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
        once({**job, **LATER, **place, "run.rounds": 3})
        found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(asked.repeats):
            for compiled, runs in found.items():
                runs.append(once({**job, **LATER, **place, "engine.compile": compiled}))
        plain, quick = (statistics.median(r["rate"] for r in runs) for runs in found.values())
        first = [runs[0]["whole"] for runs in found.values()]
        sys.stdout.write(f"| {name} | {plain:.2f} | {quick:.2f} | {quick / plain:.2f} | "
                         f"{first[1] - first[0]:.0f} |\n")  # fmt: skip


if __name__ == "__main__":
    main()
