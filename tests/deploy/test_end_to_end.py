"""One federation of real processes, as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil

import fedtune
from tests.deploy.test_deployment import adapter_of, apart
from tests.runs.kit import small

CHANGES = {
    "clients__count": 2,
    "clients__participation__value": 1.0,
    "run__rounds": 2,
    "engine__precision": "float64",
    "deploy__min_clients": 2,
}


def arguments(changes) -> list[str]:
    """`--set` options; every value is JSON but tables."""
    found = []
    for key, value in changes.items():
        if isinstance(value, dict):
            inside = ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items())
            found += ["--set", f"{key}={{ {inside} }}"]
        else:
            found += ["--set", f"{key}={json.dumps(value)}"]
    return found


def processes_of(path) -> list[str]:
    """Command lines of all processes that were started for a run directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(path) in line or "fedtune-deploy-" in line:
            found.append(line)
    return found


def test_a_federation_of_processes_gives_the_cohort_engines_result_and_leaves_nothing(tmp_path):
    out = tmp_path / "deployed"
    changes = small(**CHANGES)
    command = [sys.executable, "-m", "fedtune", "deploy", "up", "quickstart", "--clients", "2"]
    ran = subprocess.run(
        [*command, "--out", str(out), "--json", *arguments(changes)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["final"]["accuracy"] > 0
    simulated = fedtune.run("quickstart", changes, tmp_path / "simulated")
    deployed = fedtune.RunDirectory(out)
    assert apart(adapter_of(deployed), adapter_of(simulated)) <= 1e-6
    assert [line["client_ids"] for line in deployed.metrics] == [[0, 1], [0, 1]]
    told = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [t["event"] for t in told if t["event"] == "round"] == ["round", "round"]
    assert told[0]["event"] == "connected"
    assert processes_of(out) == []
    for client in (0, 1):  # the base was loaded once, and by the trainer alone
        log = (out / "deployment" / f"client-{client}" / "trainer.log").read_text()
        assert log.count("loading builtin:vit-letters") == 1
