"""What a worker keeps from one run to the next, without Ray."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fedtune.runs.settling import settle_paths
from fedtune.runs.spreading import hold
from fedtune.scenario import load_scenario
from fedtune.tasks.library import Library
from fedtune.workers.worker import Worker
from tests.runs.kit import small


def make(**changes):
    scenario = settle_paths(load_scenario("quickstart", small(**changes)))
    return partial(hold, scenario, None, "cohort")


def base_of(worker: Worker) -> torch.Tensor:
    model = worker.held.backend.setting.adapted.model
    return next(p for name, p in model.named_parameters() if "patch_embeddings" in name)


def test_base_and_data_stay_where_the_next_run_agrees_on_them():
    worker = Worker(make())
    base, data = base_of(worker), worker.held.backend.setting.data
    worker.hold(make(adapter__rank=4, local__lr=0.1))
    assert base_of(worker).data_ptr() == base.data_ptr()
    assert worker.held.backend.setting.data is data
    assert worker.held.backend.setting.local.lr == 0.1
    worker.hold(make(engine__precision="float64"))
    assert base_of(worker).dtype == torch.float64


def test_a_worker_that_cannot_load_the_next_run_holds_none():
    worker = Worker(make())
    with pytest.raises(ZeroDivisionError):
        worker.hold(lambda library: 1 / 0)
    with pytest.raises(IndexError):
        _ = worker.held
    worker.hold(make())
    assert worker.held.backend.name == "cohort"


class Thing:
    def __init__(self):
        self.closed = 0

    def close(self):
        self.closed += 1


def test_a_library_keeps_one_thing_and_closes_it_once():
    library = Library()
    first = library.keep("a", Thing)
    assert library.keep("a", Thing) is first
    second = library.keep("b", Thing)
    assert (first.closed, second.closed) == (1, 0)
    library.close()
    library.close()
    assert (first.closed, second.closed) == (1, 1)
    assert library.keep("b", Thing) is not second
