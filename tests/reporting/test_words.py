"""Sentences of a report."""

from __future__ import annotations

from typing import get_args

import pytest

from fedtune.comparison.grid import families
from fedtune.reporting.measures import RESULTS, WEIGHTS
from fedtune.reporting.tables import Entry, result_table
from fedtune.reporting.words import COUNT, TASKS, left_out, setting
from fedtune.rules.weights import POLICIES
from fedtune.runs.strategies import IMPORTANCE
from fedtune.scenario import load_scenario
from fedtune.scenario.task import TaskSection


def test_there_are_words_for_every_kind_of_task():
    assert set(TASKS) == set(get_args(TaskSection.model_fields["kind"].annotation))


def test_there_are_words_for_every_way_to_count():
    assert set(COUNT) == {*POLICIES, IMPORTANCE}


def record_of(scenario, axes):
    """What a comparison of these says before anything is trained."""
    unknown = dict.fromkeys(measure.key for measure in RESULTS)
    made = [
        {"label": family.label, "weights": family.weights, "measures": unknown, "cells": []}
        for family in families(scenario, axes)
    ]
    task = {"kind": "image-classification", "data": "digits", "base": "vit"}
    return {"kind": "comparison", "task": task, "clients": 40, "axes": list(axes), "tune": {},
            "seeds": 5, "budget": {"kind": "rounds"}, "early_stopping": False, "families": made,
            "metric": "accuracy"}  # fmt: skip


def said(record):
    return "".join(part if isinstance(part, str) else part.text for part in setting(record))


def counted(record):
    table = result_table(record)
    place = table.headings.index(WEIGHTS)
    return {row[0].text: row[place].text for row in table.rows}


def test_which_strategy_compares_methods_of_one_objective():
    base = load_scenario("which-strategy")
    record = record_of(base, base.compare.over)
    found = counted(record)
    alone = {name for name, way in found.items() if way == IMPORTANCE}
    assert alone == {"fedavg-unbiased", "fedstale", "fedvarp"}
    assert {way for name, way in found.items() if name not in alone} == {"uniform"}
    assert len(found) == 13
    assert "in this all have one objective" in said(record)


def test_a_comparison_of_several_objectives_says_so():
    base = load_scenario("quickstart")
    record = record_of(base, {"strategy.name": ["fedavg", "scaffold", "fedstale", "flag"]})
    assert counted(record) == {
        "fedavg": "reported", "scaffold": "reported", "fedstale": "importance", "flag": "uniform",
    }  # fmt: skip
    assert "by their numbers of examples (reported); alike (uniform);" in said(record)
    assert "These are several objectives" in said(record)
    rules = record_of(base, {"strategy.rule": ["mean", "median"], "strategy.pre": [[], ["nnm"]]})
    assert list(counted(rules).values()) == ["reported", "uniform", "uniform", "uniform"]


@pytest.mark.parametrize(
    ("changes", "way"),
    [
        ({}, "reported"),
        ({"clients.weights": "capped"}, "capped"),
        ({"privacy.mechanism": "example", "privacy.epsilon": 3.0}, "uniform"),
        ({"privacy.mechanism": "user", "privacy.epsilon": 3.0, "privacy.delta": 0.01}, "uniform"),
        ({"strategy.name": "frl"}, "uniform"),
        ({"strategy.name": "scaffold", "clients.weights": "uniform"}, "uniform"),
    ],
)
def test_how_clients_count_follows_from_the_scenario(changes, way):
    (family,) = families(load_scenario("quickstart", changes), {})
    assert family.weights == way


def test_a_record_from_before_there_were_weights_has_no_such_column():
    record = record_of(load_scenario("quickstart"), {"strategy.name": ["fedavg", "flag"]})
    for family in record["families"]:
        del family["weights"]
    assert WEIGHTS not in result_table(record).headings
    assert "Clients count" not in said(record)


def test_what_was_left_out_is_said_once_with_its_place_in_the_record():
    cells = [
        {"left_out": {}},
        {"left_out": {"rows are odd": 1200}},
        {"left_out": {"rows are odd": 1200}},
    ]
    record = {"families": [{"cells": cells[:1]}, {"cells": cells[1:]}]}
    place = "families.1.cells.0.left_out.rows are odd"
    assert left_out(record) == [["Of the data, ", Entry("1,200", place), " rows are odd."]]
