"""The same federated job in fedtune, in pfl-research and on Flower's Simulation Runtime.

Same base, adapter, examples, rows of each client, optimiser, batches and epochs; pfl trains the
very clients that our run sampled, Flower as many of its own choice. Sides run in turn, each in
processes of its own, and each tells when its first round begins and every round ends. Clients a
second is the median of rounds 2 and later; the last, which evaluates here, is left out. Memory is
the largest sum of proportional set sizes of a side's processes, in a run of its own, since looking
takes time. pfl gets an environment of its own
under runs/peers, beside this one's torch.

    .venv/bin/python scripts/bench_peers.py                  # all jobs, 25 minutes on 2 cores
    .venv/bin/python scripts/bench_peers.py --jobs vit-6 --sides fedtune pfl

Writes docs/benchmarks/peers.json and peers.md, and the picture beside them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from peers.picture import SIDES, draw, rates
from peers.work import JOBS, Work

import fedtune
from fedtune.runs.build import build
from fedtune.runs.directory import RunDirectory
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario
from fedtune.tasks.conv import ConvConfig
from fedtune.tasks.load import load_task

ROOT = Path(__file__).parent.parent
HERE, OUT, ENVIRONMENT = ROOT / "scripts" / "peers", ROOT / "docs" / "benchmarks", ROOT / "runs"
PFL = ["pfl==0.6.0"]
LIMIT = 900.0


def make_network(folder: Path, side: int, channels: int) -> dict[str, Any]:
    """A network whose every layer is trained; gives the overrides that name it."""
    ConvConfig(side, channels).save_pretrained(folder / "network")
    return {"task.base": str(folder / "network")}


def export(work: Work, folder: Path) -> None:
    """Write what every side needs; clients are those that a run of ours samples."""
    more = make_network(folder, *work.network) if work.network else {}
    overrides = {**work.overrides, **more}
    (folder / "overrides.json").write_text(json.dumps(overrides), "utf-8")
    short = {**overrides, "local.epochs": None, "local.steps": 1}
    run = fedtune.run("quickstart", short, folder / "run", pictures=False)
    scenario = load_scenario("quickstart", overrides)
    task = load_task(scenario, torch.device("cpu"), torch.float32)
    task.base.model.save_pretrained(folder / "model")
    initial = build(settle_paths(scenario)).adapted
    state = {s.parameter: initial.initial[s.name] for s in initial.layout.trained}
    parts = [task.clients.rows(c).tolist() for c in range(len(task.clients))]
    whole = task.train.gather(torch.arange(sum(map(len, parts))))
    test = task.test.gather(torch.as_tensor(np.asarray(task.test_rows)))
    names = list(whole.inputs)
    tensors = {
        split: [*(batch.inputs[n] for n in names), batch.labels]
        for split, batch in (("train", whole), ("test", test))
    }
    torch.save({"names": names, "initial": state, **tensors}, folder / "data.pt")
    (folder / "job.json").write_text(json.dumps(told(scenario, run, parts, work)), "utf-8")


def told(scenario: Any, run: RunDirectory, parts: list[Any], work: Work) -> dict[str, Any]:
    """job.json."""
    lora = None
    if work.network is None:
        made = json.loads((run.adapter / "adapter_config.json").read_text("utf-8"))
        kept = ("r", "lora_alpha", "target_modules", "modules_to_save", "lora_dropout")
        lora = {name: made[name] for name in kept}
    local = scenario.local
    return {
        "lora": lora,
        "network": work.network is not None,
        "parts": parts,
        "sampled": [line["client_ids"] for line in run.metrics],
        "optimizer": local.optimizer,
        "lr": local.lr,
        "weight_decay": local.weight_decay,
        "epochs": local.epochs,
        "batch_size": local.batch_size,
    }


def python_of(side: str) -> str:
    """The interpreter of a side; pfl's environment is made the first time."""
    if side != "pfl":
        return sys.executable
    home = ENVIRONMENT / "peers" / "pfl"
    python = home / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        (beside,) = home.glob("lib/python*/site-packages")
        ours = Path(torch.__file__).parents[1]
        (beside / "zz-torch.pth").write_text(f"{ours}\n{ROOT}\n", "utf-8")
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PFL], check=True)
    return str(python)


def run_side(side: str, folder: Path, threads: int, weigh: bool) -> dict[str, Any]:
    """Run one side of a job once.

    Args:
        weigh: look at its memory, which slows it down.
    """
    command = [python_of(side), str(HERE / f"with_{side}.py"), str(folder)]
    quiet = {"PEER_THREADS": str(threads), "RAY_DEDUP_LOGS": "0", "HF_HUB_OFFLINE": "1"}
    log = folder / f"{side}.log"
    started, peak = time.time(), 0
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **quiet}
        )
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid)) if weigh else 0
            if time.time() - started > LIMIT:
                process.kill()
            time.sleep(0.25)
    lines = [line for line in log.read_text("utf-8").splitlines() if line.startswith('{"ready"')]
    if process.returncode or not lines:
        raise SystemExit(f"{side} failed: see {log}\n{log.read_text('utf-8')[-2000:]}")
    found = json.loads(lines[-1])
    between = [b - a for a, b in itertools.pairwise(found["ends"])][:-1]
    return {
        "first": found["ends"][0] - started,
        "round": statistics.median(between),
        "peak": peak,
        "accuracy": found["accuracy"],
    }


def memory_of(pid: int) -> int:
    """Proportional set sizes of a process and its descendants, in bytes."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                total += one.memory_full_info().pss
    return total


def measure(name: str, sides: list[str], repeats: int, threads: int) -> dict[str, Any]:
    """All sides of a job, in turn."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        export(JOBS[name], folder)
        sampled = json.loads((folder / "job.json").read_text("utf-8"))["sampled"]
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        peaks = {side: run_side(side, folder, threads, True)["peak"] for side in sides}
        for _ in range(repeats):
            for side in sides:
                found[side].append(run_side(side, folder, threads, False))
                sys.stderr.write(f"{name} {side}: {found[side][-1]}\n")
    says, sampled = JOBS[name].says, len(sampled[0])
    return {"says": says, "clients": sampled, "sides": found, "peaks": peaks}


def table(found: dict[str, Any]) -> str:
    """The Markdown table."""
    rows = [
        "| job | side | clients/s (least to greatest) | fedtune ÷ it | call to end of round 1, s | "
        "peak MiB | accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, job in found["jobs"].items():
        ours = statistics.median(rates(job, "fedtune"))
        for side, repeats in job["sides"].items():
            here = sorted(rates(job, side))
            middle = statistics.median(here)
            start, accuracy = (
                statistics.median(one[key] for one in repeats) for key in ("first", "accuracy")
            )
            ratio = "" if side == "fedtune" else f"{ours / middle:.1f}"
            rows.append(
                f"| {name} | {side} | {middle:.1f} ({here[0]:.1f}–{here[-1]:.1f}) | {ratio} | "
                f"{start:.1f} | {job['peaks'][side] / 2**20:.0f} | {accuracy:.1%} |"
            )
    says = [f"- **{name}**: {job['says']}" for name, job in found["jobs"].items()]
    return "\n".join([*says, "", *rows, ""])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    jobs = {n: measure(n, asked.sides, asked.repeats, asked.threads) for n in asked.jobs}
    asked.out.mkdir(parents=True, exist_ok=True)
    if (before := asked.out / "peers.json").is_file():  # jobs that were not asked for stay
        known = json.loads(before.read_text("utf-8"))["jobs"]
        jobs = {name: {**known, **jobs}[name] for name in JOBS if name in {**known, **jobs}}
    found = {"cores": os.cpu_count(), "torch": torch.__version__, "pfl": PFL[0], "jobs": jobs}
    (asked.out / "peers.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (asked.out / "peers.md").write_text(table(found), "utf-8")
    draw(found, asked.out / "peers.png")
    sys.stdout.write(table(found))


if __name__ == "__main__":
    main()
