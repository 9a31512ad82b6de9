"""What `plan` says against what the run then does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fedtune
from fedtune.cohort.plan import ClientWork
from fedtune.errors import ScenarioError
from fedtune.runs.cost import folded
from tests.cohort.kit import bert, table
from tests.runs.kit import small
from tests.runs.test_flower_apps import LANGUAGE, TEXT


@pytest.mark.parametrize("strategy", ["fedavg", "ffa-lora"])
@pytest.mark.parametrize("task", [{}, TEXT, LANGUAGE], ids=["image", "text", "language"])
def test_bytes_and_parameters_are_those_of_the_run(tmp_path, task, strategy):
    overrides = small(strategy__name=strategy, **task)
    planned = fedtune.plan("quickstart", overrides)
    done = fedtune.run("quickstart", overrides, tmp_path / "run")
    first, summary = done.metrics[0], done.summary
    for key in ("bytes_down", "bytes_up", "framing_down", "framing_up"):
        assert getattr(planned, key) == first[key], key
    assert planned.run_bytes_up == summary["bytes_up"]
    assert planned.run_bytes_down == summary["bytes_down"]
    assert planned.parameters_trained == summary["parameters_trained"]
    assert planned.parameters_sent == summary["parameters_sent"]
    whole = fedtune.load_model(done).merge_and_unload()
    assert planned.parameters_base == sum(p.numel() for p in whole.parameters())
    assert planned.clients_per_round == summary["client_updates"] / summary["rounds"]
    assert planned.cohort_size == summary["resolved"]["sizes"][0][1]


def test_planning_a_random_number_of_clients_knows_whom_the_seed_will_draw(tmp_path):
    participation = {"kind": "bernoulli", "value": 0.4}
    overrides = small(run__rounds=4, clients__participation=participation)
    planned = fedtune.plan("quickstart", overrides)
    done = fedtune.run("quickstart", overrides, tmp_path / "run")
    assert planned.run_bytes_up == done.summary["bytes_up"]


def test_a_round_that_nobody_takes_part_in_can_be_planned():
    participation = {"kind": "bernoulli", "value": 0.001}
    planned = fedtune.plan("quickstart", small(clients__participation=participation))
    assert planned.bytes_up == planned.run_bytes_up == 0
    assert planned.seconds_train == 0


def test_a_plan_writes_nothing_and_refuses_what_a_run_would_refuse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fedtune.plan("quickstart", small(task__head="local"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ScenarioError, match=r"task.base"):
        fedtune.plan("quickstart", {"task.base": "builtin:none"})


def test_folded_positions_are_those_that_the_model_is_given():
    data = table(bert, rows=12)
    widths = data.widths(np.arange(12))
    rows = [np.array([0, 1, 2]), np.array([3]), np.array([4, 5])]
    a = ClientWork(0, {}, ((rows[0],), (rows[1],)), (2,), 0, 4)
    b = ClientWork(1, {}, ((rows[2],),), (1,), 0, 2)
    seen = 2 * 3 * widths[[0, 1, 2, 4, 5]].max() + 1 * widths[3]
    assert folded([a, b], data) == (2, seen)
    batch = data.gather(torch.tensor([0, 1, 2, 4, 5]))
    assert batch.inputs["input_ids"].shape[1] == widths[[0, 1, 2, 4, 5]].max()
