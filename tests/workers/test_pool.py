"""Cohorts on Ray: equal to those of one process, whatever dies on the way."""

from __future__ import annotations

import os
import signal
from contextlib import closing

import numpy as np
import pytest
import torch

import fedtune
from fedtune.cohort.plan import ClientWork
from fedtune.errors import ClientFailure, RunError, ScenarioError
from fedtune.runs.build import build
from fedtune.runs.loop import start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario
from fedtune.tasks.library import Library
from fedtune.workers.engine import SpreadEngine
from fedtune.workers.packing import pack, shared_by
from tests.runs.kit import small
from tests.workers import jobs
from tests.workers.kit import FLOAT64, far

ray = pytest.importorskip("ray", reason="needs fedtune[ray]")
WORKERS = 2


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """Ray, started once for all tests, and the file by which jobs know that they were here."""
    mark = tmp_path_factory.mktemp("mark") / "here"
    os.environ[jobs.MARK] = str(mark)
    ray.init("local", num_cpus=6, include_dashboard=False, log_to_driver=False)
    yield mark
    ray.shutdown()


@pytest.fixture(scope="module")
def federation(cluster):
    """A federation of two workers; what one process alone gives lies beside it."""
    overrides = small(
        engine__precision="float64", engine__workers=WORKERS, local__optimizer="adamw",
        adapter__dropout=0.1,
    )  # fmt: skip
    made = build(settle_paths(load_scenario("quickstart", overrides)))
    with closing(made.engine):
        yield made


@pytest.fixture(autouse=True)
def unmarked(cluster):
    cluster.unlink(missing_ok=True)


@pytest.fixture
def works(federation):
    clients = list(federation.task.clients.eligible)
    return federation.clients.works(clients, 1, start_state(federation, None).arrays)


@pytest.fixture
def alone(federation, works):
    """What this process gives, one client after another."""
    return {w.client: federation.engine.backend.train([w], 1)[0] for w in works}


def test_workers_give_what_one_process_gives(federation, works, alone):
    engine = federation.engine
    assert isinstance(engine, SpreadEngine)
    found = engine.train(works, 1)
    assert far(found, alone) < FLOAT64
    assert [found[c].steps for c in alone] == [r.steps for r in alone.values()]
    assert len(set(engine.pool.everywhere("process"))) == WORKERS
    assert os.getpid() not in engine.pool.everywhere("process")


def test_cohorts_are_as_few_as_workers_unless_smaller_ones_even_out(federation):
    def works(steps: list[int]) -> list[ClientWork]:
        step = (np.arange(4),)
        return [ClientWork(c, {}, (step,) * n, (n,), None, 4) for c, n in enumerate(steps)]

    deal = federation.engine.deal
    assert [len(cohort) for cohort in deal(works([2] * 12), 100)] == [6, 6]
    assert [len(cohort) for cohort in deal(works([2] * 12), 4)] == [3, 3, 3, 3]
    assert [len(cohort) for cohort in deal(works([1]), 100)] == [1]
    uneven = [[len(w.steps) for w in cohort] for cohort in deal(works([*range(1, 9)]), 100)]
    assert uneven == [[8, 7], [6, 5], [4, 3], [2, 1]]
    gains_little = [6, 6, 5, 5, 4, 4, 4, 4]  # 20 instead of 22 steps
    assert [len(cohort) for cohort in deal(works(gains_little), 100)] == [4, 4]


def test_a_client_that_fails_in_a_worker_is_named_and_the_others_go_on(federation, works):
    found = federation.engine.each([works[:3]], 1, jobs.hates_client_one)
    failed = [c for c, result in found.items() if isinstance(result, ClientFailure)]
    assert failed == [1]
    assert found[1].reason == "ValueError: not this one"


def test_out_of_memory_in_a_worker_halves_the_cohorts(federation, works, alone):
    engine = federation.engine
    size = engine.settle(works, 1)
    found = engine._in_cohorts(works, 1, jobs.full_once)
    assert engine.resolved.size(1) == max(1, size // 2)
    assert far(found, alone) < FLOAT64


def test_evaluation_is_spread_and_equal(federation):
    engine, task = federation.engine, federation.task
    state = start_state(federation, None).arrays
    spread = engine.evaluate(state, task.test, task.test_rows)
    named, engine.named = engine.named, {}
    here = engine.evaluate(state, task.test, task.test_rows)
    engine.named = named
    assert spread == pytest.approx(here, rel=1e-12)


def test_a_worker_that_dies_is_replaced_and_no_client_counts_twice(federation, works, alone):
    engine = federation.engine
    before, deaths = engine.pool.everywhere("process"), engine.pool.deaths
    dealt = engine.deal(works, 2)
    found = engine.each(dealt, 1, jobs.dies_once)
    assert engine.pool.deaths == deaths + 1
    assert far(found, alone) < FLOAT64
    assert len(set(before) - set(engine.pool.everywhere("process"))) == 1


@pytest.mark.long
def test_workers_that_keep_dying_end_the_run_with_a_line(federation, works):
    with pytest.raises(RunError, match="3 workers died"):
        federation.engine.each(federation.engine.deal(works[:1], 1), 1, jobs.always_dies)
    assert len(federation.engine.train(works, 1)) == len(works)


@pytest.mark.long
def test_a_comparison_with_workers_gives_what_one_without_gives(tmp_path):
    found = []
    for more in ({}, {"engine.workers": WORKERS}):
        over = {"strategy.name": ["fedavg", "ffa-lora"], "engine.precision": ["float64"]}
        done = fedtune.compare("quickstart", over, small(**more), tmp_path / f"c{len(found)}")
        finals = [f["cells"][0]["measures"]["final"] for f in done.record["families"]]
        found.append(
            [*finals, [f["cells"][0]["looks"][-1]["eval"]["loss"] for f in done.record["families"]]]
        )
    assert found[1][:2] == found[0][:2]
    assert found[1][2] == pytest.approx(found[0][2], rel=1e-6)


RUNS = {
    "fedavg": {},
    "scaffold": {"strategy.name": "scaffold", "local.optimizer": "sgd", "local.lr": 0.05},
    "fed-sb": {"strategy.name": "fed-sb"},
    "rerce": {"strategy.name": "rerce", "strategy.rho": 1.0, "strategy.first": 2},
    "local-heads": {"task.head": "local"},
    "late": {"faults.late": 0.4},
    "backdoor": {"attack.kind": "backdoor", "attack.fraction": 0.4},
    "sequential": {"engine.kind": "sequential"},
    "private": {
        "privacy.mechanism": "example", "privacy.epsilon": 8.0, "privacy.clip": 1.0,
        "privacy.deterministic_randomness": True,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def library(cluster):
    """Lends its workers to one run after another, as a comparison does."""
    with closing(Library()) as made:
        yield made


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("workers", [WORKERS, pytest.param(3, marks=pytest.mark.long)])
def test_a_run_does_not_depend_on_the_number_of_workers(tmp_path, library, name, workers):
    overrides = small(engine__precision="float64", **RUNS[name])
    alone = fedtune.run("quickstart", overrides, tmp_path / "alone")
    spread = fedtune.run(
        "quickstart",
        {**overrides, "engine.workers": workers},
        tmp_path / "spread",
        library=library,
    )
    mine, theirs = ([line["eval"]["loss"] for line in run.metrics] for run in (alone, spread))
    assert theirs == pytest.approx(mine, rel=1e-6)
    assert bool(alone.metrics[-1]["lost"]) == (name == "late")
    assert spread.summary["resolved"]["workers"] == [workers, 1, 0]
    assert len(spread.summary["peak_memory_bytes_workers"]) == workers
    if name not in ("fedavg", "late"):
        return
    longer = {"run.rounds": 3}
    mine = fedtune.resume(alone.path, longer).metrics[-1]
    theirs = fedtune.resume(spread.path, longer, library=library).metrics[-1]
    assert theirs["eval"]["loss"] == pytest.approx(mine["eval"]["loss"], rel=1e-6)
    assert theirs["bytes_up"] == mine["bytes_up"]


def test_workers_are_lent_to_the_next_run_which_gives_the_same(tmp_path, library):
    """Another method, other clients' data and other precision between two equal runs."""
    changes = [
        {"engine.precision": "float64"},
        {"strategy.name": "ffa-lora", "clients.partition": {"kind": "iid"}},
        {"engine.precision": "float64"},
    ]
    found, processes = [], []
    for index, more in enumerate(changes):
        out = tmp_path / str(index)
        options = {**small(), **more, "engine.workers": WORKERS}
        run = fedtune.run("quickstart", options, out, library=library, pictures=False)
        found.append([line["eval"]["loss"] for line in run.metrics])
        pool = library.keep((WORKERS, 1, 0, None), lambda: pytest.fail("not the same workers"))
        processes.append(set(pool.everywhere("process")))
    assert processes[0] == processes[1] == processes[2]
    assert found[0] == found[2] != found[1]
    os.kill(min(processes[0]), signal.SIGKILL)
    run = fedtune.run("quickstart", options, tmp_path / "after", library=library, pictures=False)
    assert [line["eval"]["loss"] for line in run.metrics] == found[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"engine.workers": 7},
            "engine.workers = 7: of 1 cores and 0 GPUs each, Ray has room for 6",
        ),
        ({"engine.workers": 2, "engine.device": "cuda:1"}, "engine.device = 'cuda:1'"),
    ],
)
def test_what_ray_does_not_have_is_refused_in_a_line(tmp_path, changes, message):
    with pytest.raises(ScenarioError, match=message):
        fedtune.run("quickstart", small(**changes), tmp_path / "run")


def test_what_is_shared_travels_once_a_round(federation, works):
    """With more clients the parcels grow by their batches only, not by the adapter."""
    dealt = federation.engine.deal(works, 1)
    shared = shared_by(dealt)
    assert sum(t.numel() for t in shared) == sum(t.numel() for t in works[0].state.values())
    assert not any(pack(cohort, shared).own for cohort in dealt)
    torch.testing.assert_close(shared, list(works[0].state.values()))
