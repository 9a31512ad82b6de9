"""The real thing: Flower's SuperLink, Simulation Runtime and Ray; and an unpacked bundle."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fedtune
from fedtune.errors import ScenarioError
from tests.runs.kit import small
from tests.runs.test_flower_apps import LANGUAGE, TEXT

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "task", [TEXT, pytest.param(LANGUAGE, marks=pytest.mark.long)], ids=["text", "language"]
)
def test_a_run_on_flowers_simulation_runtime_equals_the_cohort_engine(tmp_path, task):
    pytest.importorskip("ray", reason="needs fedtune[flower]")
    overrides = small(**{"engine.precision": "float64"}, **task)
    ours = fedtune.run("quickstart", overrides, tmp_path / "cohort")
    flower = {**overrides, "engine.kind": "flower", "engine.workers": 2}
    theirs = fedtune.run("quickstart", flower, tmp_path / "flower")
    losses = [[line["eval"]["loss"] for line in run.metrics] for run in (ours, theirs)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert theirs.summary["client_updates"] == ours.summary["client_updates"]
    assert [line["bytes_up"] for line in theirs.metrics] == [
        line["bytes_up"] for line in ours.metrics
    ]


@pytest.mark.long
def test_what_the_server_refuses_is_one_line_here(tmp_path):
    pytest.importorskip("ray", reason="needs fedtune[flower]")
    overrides = small(engine__kind="flower", task__data="builtin:none")
    with pytest.raises(ScenarioError, match=r"task.data = 'builtin:none'"):
        fedtune.run("quickstart", overrides, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The project's Flower bundle, unpacked, and nothing of fedtune installed beside it."""
    folder = tmp_path_factory.mktemp("bundle")
    command = "from flwr.cli.build import build_fab_from_disk; import sys, pathlib\n" + (
        "pathlib.Path(sys.argv[2]).write_bytes(build_fab_from_disk(pathlib.Path(sys.argv[1])))"
    )
    subprocess.run([sys.executable, "-c", command, str(ROOT), str(folder / "app.fab")], check=True)
    with zipfile.ZipFile(folder / "app.fab") as packed:
        packed.extractall(folder / "app")
    others = folder / "site"
    others.mkdir()
    for entry in Path(site.getsitepackages()[0]).iterdir():
        if "fedtune" not in entry.name:
            (others / entry.name).symlink_to(entry)
    return folder


SCRIPT = """
import sys, fedtune
from importlib.metadata import entry_points
from fedtune.grids.cohort_grid import CohortGrid
from fedtune.grids.strangers import AppClients
from fedtune.runs import client_app
from fedtune.scenario import dump_scenario, load_scenario
assert not list(entry_points(group="fedtune.strategies"))
assert fedtune.__file__.startswith(sys.argv[1])
base, out = sys.argv[2:]
scenario = load_scenario("quickstart", {
    "task.base": base, "task.kind": "text-classification", "task.data": "builtin:intents",
    "clients.count": 3, "run.rounds": 1, "local.epochs": 1, "strategy.name": "ffa-lora",
    "engine.kind": "flower", "engine.threads": 1})
config = {"scenario": dump_scenario(scenario), "out": out}
grid = CohortGrid(AppClients(client_app.app, 3, config), range(3))
with grid.serving():
    try:
        print("rounds", fedtune.run(scenario, out=out, grid=grid).summary["rounds"])
    except fedtune.errors.ScenarioError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (str(ROOT / "fedtune" / "builtin" / "bert-words"), "rounds 1"),
        ("builtin:bert-words", "weights are not in .* a Flower bundle cannot hold weights"),
    ],
)
def test_an_unpacked_bundle_runs_where_fedtune_is_not_installed(bundle, tmp_path, base, said):
    app = str(bundle / "app")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([app, str(bundle / "site")])}
    command = [sys.executable, "-S", "-c", SCRIPT, app, base, str(tmp_path / "run")]
    ran = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert re.search(said, ran.stdout), ran.stdout + ran.stderr[-2000:]
