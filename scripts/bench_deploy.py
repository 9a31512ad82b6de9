"""What deployment costs: seconds to the first round and a round, against the cohort engine.

.venv/bin/python scripts/bench_deploy.py                        # quickstart, 4 clients
.venv/bin/python scripts/bench_deploy.py --encoder              # MiniLM (scripts/get_encoder.py)
.venv/bin/python scripts/bench_deploy.py --no-trainer           # the base loaded for every message

Four SuperNodes, TLS and authentication on. With --kill a SuperNode is killed after the second round
(and comes back by itself). The encoder learns banking77, of ../shared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fedtune
from fedtune.deploy.federation import LocalFederation
from fedtune.deploy.runs import APPS, Asked, prepared
from fedtune.errors import RunError
from fedtune.runs.directory import RunDirectory
from fedtune.runs.server_files import FAILED
from fedtune.runs.submitting import raise_failure
from fedtune.runs.superlink import CONNECTION
from fedtune.scenario import Scenario, load_scenario

ROOT = Path(__file__).parent.parent
ALONE = {**APPS, "clientapp": "fedtune.runs.client_app:app"}
COMMON = {"clients.participation.value": 1.0, "engine.threads": 1, "run.eval_every": 1}
PATIENCE, KILLED_AFTER = 1500.0, 2


def scenario_of(encoder: bool, clients: int, rounds: int) -> Scenario:
    """The work that is timed."""
    changes: dict[str, Any] = {**COMMON, "clients.count": clients, "run.rounds": rounds}
    if not encoder:
        return load_scenario("quickstart", changes)
    shared = ROOT.parent / "shared" / "data" / "banking77"
    changes |= {"task.data": str(shared), "task.train_examples": 2000, "task.test_examples": 100}
    changes |= {"local.epochs": None, "local.steps": 4}
    return load_scenario("banking77", changes)


def deployed(scenario: Scenario, folder: Path, trainer: bool, kill: bool) -> dict[str, Any]:
    """Seconds to the first round and of the others, over real processes."""
    started = time.monotonic()
    settled, directory, name = prepared(scenario, folder / "run")
    home = folder / "home"
    home.mkdir()
    federation = LocalFederation(home, scenario.clients.count, directory.deployment)
    ends: list[float] = []
    try:
        federation.start(1)
        asked = Asked(settled, directory.path, name, federation.nodes)
        asked.submit(home, CONNECTION, federation.link.environment, APPS if trainer else ALONE)
        submitted = time.monotonic() - started
        while not directory.summary:
            raise_failure(home / FAILED)
            while len(ends) < len(directory.metrics):
                ends.append(time.monotonic() - started)
                if kill and len(ends) == KILLED_AFTER:
                    federation.clients[1].supernode.child.process.kill()
            if time.monotonic() - started > PATIENCE:
                raise RunError("took too long")
            federation.check()
            time.sleep(0.05)
    finally:
        federation.stop()
    return _told(directory, submitted, ends, time.monotonic() - started)


def _told(
    directory: RunDirectory, submitted: float, ends: list[float], total: float
) -> dict[str, Any]:
    between = [b - a for a, b in itertools.pairwise(ends)]
    return {
        "seconds_submitted": submitted,
        "seconds_first_round": ends[0],
        "seconds_a_round": between,
        "median": statistics.median(between),
        "seconds_total": total,
        "clients": [line["clients"] for line in directory.metrics],
        "accuracy": directory.summary["final"].get("accuracy"),
    }


def simulated(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """The same on the cohort engine, in this process."""
    started = time.monotonic()
    run = fedtune.run(scenario, (), folder / "simulated")
    seconds = [line["seconds"] for line in run.metrics]
    return {
        "seconds_a_round": seconds,
        "median": statistics.median(seconds[1:]),
        "seconds_total": time.monotonic() - started,
        "accuracy": run.summary["final"].get("accuracy"),
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--encoder", action="store_true", help="MiniLM on banking77")
    parser.add_argument("--no-trainer", action="store_true", help="load the base for every message")
    parser.add_argument("--kill", action="store_true", help="kill a SuperNode in between")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    scenario = scenario_of(asked.encoder, asked.clients, asked.rounds)
    with tempfile.TemporaryDirectory() as folder:
        found = {"simulated": simulated(scenario, Path(folder))}
        found["deployed"] = deployed(scenario, Path(folder), not asked.no_trainer, asked.kill)
    json.dump({"arguments": sys.argv[1:], **found}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
