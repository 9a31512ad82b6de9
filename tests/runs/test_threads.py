"""`engine.threads = "auto"`: chosen by the job's own step, kept, shared, and never spinning."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import fedtune
from fedtune import waiting
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.together import CohortBackend
from fedtune.runs import engines, threads
from fedtune.runs.build import build
from fedtune.scenario import load_scenario
from tests.cohort import kit
from tests.runs.kit import small

AUTO = small(engine__threads="auto", run__rounds=1)


@pytest.fixture(autouse=True)
def as_before():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0, 2: 0.95, 4: 0.93}, 1),
        ({1: 1.0, 2: 0.6, 4: 0.55}, 2),
        ({1: 1.0, 2: 0.95, 4: 0.5}, 4),
        ({1: 1.0, 2: 40.0}, 1),
    ],
)
def test_the_fewest_threads_that_are_nearly_as_fast_are_chosen(monkeypatch, seconds, chosen):
    monkeypatch.setattr(threads, "_seconds", lambda step, count: seconds[count])
    found = threads.fewest_nearly_as_fast(lambda: None, sorted(seconds))
    assert found == chosen
    assert seconds[found] <= min(seconds.values()) / 0.85


@pytest.mark.parametrize("make", [CohortBackend, SequentialBackend])
def test_a_step_of_the_job_is_timed_with_each_number_of_threads(make, monkeypatch):
    tried = []
    setting = kit.setting()
    backend = make(setting)
    train = backend.train
    monkeypatch.setattr(threads, "_OWN_THREADS", 6)
    monkeypatch.setattr(threads, "free_cores", lambda: 3)
    monkeypatch.setattr(
        backend, "train", lambda *given: (tried.append(torch.get_num_threads()), train(*given))
    )
    assert threads.auto_threads(backend) in (1, 2, 3)
    assert 3 in tried[1:]
    assert set(tried[1:]) <= {1, 2, 3}


def test_busy_cores_are_not_counted_as_free(monkeypatch):
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda *_, **__: [100.0, 3.0, 60.0, 0.0])
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert threads.free_cores() == 1
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert threads.free_cores() == 2
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda *_, **__: [100.0] * 4)
    assert threads.free_cores() == 1


def test_the_choice_is_kept_and_used_again(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "auto_threads", lambda backend: 3)
    done = fedtune.run("quickstart", AUTO, tmp_path / "run", pictures=False)
    assert json.loads((done.path / "engine.json").read_text())["threads"] == 3
    torch.set_num_threads(1)
    monkeypatch.setattr(engines, "auto_threads", lambda backend: pytest.fail("chosen again"))
    fedtune.resume(done.path, {"run.rounds": 2}, pictures=False)
    assert torch.get_num_threads() == 3


def test_the_cells_of_a_comparison_share_one_choice(tmp_path, monkeypatch):
    counts = iter([1, 2])
    monkeypatch.setattr(engines, "auto_threads", lambda backend: next(counts))
    axes = {"adapter.rank": [2, 3]}
    found = fedtune.compare("quickstart", axes, overrides=AUTO, seeds=1, out=tmp_path / "grid")
    assert _threads(found.path) == [2, 2]
    monkeypatch.setattr(engines, "auto_threads", lambda backend: pytest.fail("chosen again"))
    axes = {"adapter.rank": [2, 3, 4]}
    again = fedtune.compare("quickstart", axes, overrides=AUTO, seeds=1, out=tmp_path / "grid")
    assert _threads(again.path) == [2, 2, 2]


def _threads(folder) -> list[int]:
    return [json.loads(file.read_text())["threads"] for file in folder.rglob("engine.json")]


WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def told(code: str, **given: str) -> str:
    """What a process of its own prints."""
    clean = {name: value for name, value in os.environ.items() if name not in WAITS}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, "OMP_NUM_THREADS": "2", **given},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({}, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "10"}, "None"),
        ({"KMP_BLOCKTIME": "0"}, "None"),
    ],
)
def test_threads_wait_without_spinning_unless_the_user_says_otherwise(given, policy):
    code = "import fedtune, os; from fedtune.waiting import spins"
    assert told(f"{code}; print(os.environ.get('OMP_WAIT_POLICY'), spins())", **given) == (
        f"{policy} False"
    )


def test_a_run_whose_threads_spin_says_so(monkeypatch):
    monkeypatch.setitem(waiting._STATE, "late", True)
    federation = build(load_scenario("quickstart", AUTO))
    assert federation.engine.resolved.threads == 1
    assert any("import fedtune first" in note for note in federation.notes)


def test_where_threads_spin_all_the_same_there_is_one():
    code = "import torch, fedtune; from fedtune.runs.threads import own_threads"
    assert told(f"{code}; print(own_threads(), torch.get_num_threads())") == "1 2"
