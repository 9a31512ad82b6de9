"""A cluster that was up before the run: two machines (Ray's nodes, both here), one of them lost."""

from __future__ import annotations

from contextlib import closing

import pytest

import fedtune
from fedtune.runs.build import build
from fedtune.runs.loop import start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario
from tests.runs.kit import small
from tests.workers import jobs
from tests.workers.kit import FLOAT64, far

ray = pytest.importorskip("ray", reason="needs fedtune[ray]")
pytestmark = pytest.mark.long


@pytest.fixture
def overrides(tmp_path, monkeypatch):
    """Of a run on a cluster of two machines with a core each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv(jobs.MARK, str(tmp_path / "here"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1, env_vars={jobs.SPARE: "1"})
    yield small(
        engine__precision="float64", engine__workers="auto", engine__threads=1,
        engine__ray_address=cluster.address,
    )  # fmt: skip
    ray.shutdown()
    cluster.shutdown()


def test_a_run_takes_the_machines_that_there_are_and_leaves_them_up(tmp_path, overrides):
    theirs = fedtune.run("quickstart", overrides, tmp_path / "spread")
    assert theirs.summary["resolved"]["workers"] == [2, 1, 0]
    assert not ray.is_initialized()
    ray.init(overrides["engine.ray_address"], log_to_driver=False)
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    here = {**overrides, "engine.workers": None, "engine.ray_address": None}
    mine = fedtune.run("quickstart", here, tmp_path / "alone")
    losses = [[line["eval"]["loss"] for line in run.metrics] for run in (mine, theirs)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_machine_that_is_lost_takes_no_client_along(overrides):
    made = build(settle_paths(load_scenario("quickstart", overrides)))
    with closing(made.engine) as engine:
        clients = list(made.task.clients.eligible)
        works = made.clients.works(clients, 1, start_state(made, None).arrays)
        alone = {w.client: engine.backend.train([w], 1)[0] for w in works}
        found = engine.each(engine.deal(works, 2), 1, jobs.takes_its_machine_along)
        assert engine.pool.deaths == 1
        assert far(found, alone) < FLOAT64
        again = engine.each(engine.deal(works, 2), 1, jobs.trained)  # by the one that is left
        assert far(again, alone) < FLOAT64
        assert len(engine.peaks()) == 1
