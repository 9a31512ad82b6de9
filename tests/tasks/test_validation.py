"""Validation data: the clients' own, never the test split's, and not trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedtune.errors import ScenarioError
from fedtune.runs.build import build
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario
from fedtune.tasks.library import Library
from tests.runs.kit import small


def built(scenario="quickstart", library=None, **changes):
    overrides = small(**changes) if scenario == "quickstart" else {
        key.replace("__", "."): value for key, value in changes.items()
    }  # fmt: skip
    return build(settle_paths(load_scenario(scenario, overrides)), library=library)


@pytest.mark.parametrize("scenario", ["quickstart", "intents", "sums"])
def test_each_client_holds_out_its_share_and_only_these_rows_are_evaluated(scenario):
    whole = built(scenario)
    federation = built(scenario, task__validation=0.25)
    held = set(federation.task.test_rows.tolist())
    assert federation.task.test is federation.task.train
    assert federation.task.exact_match is None
    for client in whole.task.clients.eligible:
        mine = set(whole.task.clients.rows(client).tolist())
        trained = set(federation.clients.training_rows(client).tolist())
        assert trained
        assert trained == mine - held
        assert len(mine & held) == min(len(mine) - 1, max(1, round(0.25 * len(mine))))
    assert np.array_equal(federation.task.clients.parts[0], whole.task.clients.parts[0])


def test_a_local_head_is_not_chosen_by_what_it_is_tested_on():
    final = built(task__head="local")
    search = built(task__head="local", task__validation=0.25)
    for client in search.task.clients.eligible:
        tested = set(final.clients.held_rows(client).tolist())
        seen = {*search.clients.held_rows(client), *search.clients.training_rows(client)}
        assert not tested & seen


EVEN = {"clients__partition": {"kind": "iid"}}


@pytest.mark.parametrize(
    ("holding", "said"),
    [
        ({"task__validation": 0.2}, r"task\.validation = 0\.2: no client has two examples"),
        ({"clients__holdout": 0.2}, r"clients\.holdout = 0\.2: no client has two examples"),
        ({"task__head": "local"}, r"task\.head = 'local': no client has two examples"),
        ({"task__head": "local", "task__validation": 0.2}, "no client has two examples"),
    ],
)
def test_where_no_client_can_hold_an_example_out_the_run_is_refused(holding, said):
    with pytest.raises(ScenarioError, match=said):
        built(**EVEN, task__train_examples=6, **holding)


@pytest.mark.parametrize(
    ("holding", "said"),
    [
        ({"task__validation": 0.2}, "data: 2 of 6 clients have one example and hold out none"),
        ({"clients__holdout": 0.2}, "clients: 2 of 6 have one example and are not evaluated"),
        ({"task__head": "local"}, "clients: 2 of 6 have one example and are not evaluated"),
    ],
)
def test_clients_that_cannot_hold_an_example_out_are_counted_in_a_note(holding, said):
    assert said in built(**EVEN, task__train_examples=10, **holding).notes
    assert not any("one example" in note for note in built(**EVEN, **holding).notes)


def test_a_backdoor_that_no_test_example_can_show_is_refused():
    only = built(task__test_examples=1).task.test.labels[0]
    with pytest.raises(ScenarioError, match="all test examples are of that class"):
        built(task__test_examples=1, attack={"kind": "backdoor", "target": int(only)})


def test_made_examples_have_validation_rows_of_their_own():
    changes = {"task__data": "builtin:synthetic", "clients__partition": {"kind": "iid"}}
    final, search = built(**changes), built(task__validation=0.5, **changes)
    assert not set(final.task.test_rows) & set(search.task.test_rows)
    rows = torch.arange(8)
    one, other = (f.task.train.gather(rows).inputs["pixel_values"] for f in (final, search))
    assert torch.equal(one, other)


def test_borrowers_share_the_frozen_base_and_nothing_else():
    library = Library()
    one, other = built(library=library), built(library=library, adapter__rank=4)
    mine, theirs = (dict(f.adapted.model.named_parameters()) for f in (one, other))
    frozen = [n for n in mine if "base_layer" in n or "layernorm" in n]
    assert frozen
    for name in mine:
        shared = mine[name].data_ptr() == theirs[name].data_ptr()
        assert shared == (not mine[name].requires_grad and "modules_to_save" not in name
                          and "classifier" not in name), name  # fmt: skip
    assert one.task.train is other.task.train


def test_another_precision_or_data_set_is_loaded_anew():
    library = Library()
    one = built(library=library)
    other = built(library=library, engine__precision="float64")
    assert other.adapted.model.dtype == torch.float64
    assert one.adapted.model.dtype == torch.float32
    assert built(library=library, task__train_examples=500).task.train is not one.task.train
