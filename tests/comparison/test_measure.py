"""What is read out of a run's directory, on runs written by hand."""

from __future__ import annotations

import json
import math

import pytest

from fedtune.comparison.differences import add_lost_under_attack, differences
from fedtune.comparison.measure import best_of, looks_of, measure, reached
from fedtune.runs.directory import RunDirectory


def written(path, values, initial=0.1, metric="accuracy", **summary):
    path.mkdir()
    for number, value in enumerate(values, 1):
        found = None if value is None else {metric: value, "loss": 1.0 - value / 1000}
        line = {
            "round": number, "eval": found, "clients": 2, "bytes_up": 10, "bytes_down": 20,
            "client_steps": 3, "seconds": 0.5, "failures": 1, "rejected": 0,
            "epsilon": {"0": number * 0.5, "1": number * 0.25},
        }  # fmt: skip
        with (path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    if summary is not None:
        summary = {"initial": {metric: initial, "loss": 2.0}, **summary}
        (path / "summary.json").write_text(json.dumps(summary))
    return RunDirectory(path)


def test_costs_are_counted_up_to_the_evaluation(tmp_path):
    run = written(tmp_path / "run", [0.5, None, 0.7, 0.6])
    looks = looks_of(run)
    assert [look["round"] for look in looks] == [0, 1, 3, 4]
    assert [look["bytes_up"] for look in looks] == [0, 10, 30, 40]
    assert looks[2]["client_steps"] == 9
    found = measure(run, "accuracy", 0.65)
    assert (found["final"], found["best"]) == (0.6, 0.7)
    assert (found["rounds_to_target"], found["bytes_up_to_target"]) == (3, 30)
    assert found["seconds_to_target"] == pytest.approx(1.5)
    assert (found["bytes_up"], found["bytes_down"], found["failures"]) == (40, 80, 4)
    assert found["epsilon"] == 2.0
    assert measure(run, "accuracy", 0.9)["rounds_to_target"] is None


def test_less_perplexity_is_better(tmp_path):
    run = written(tmp_path / "run", [40.0, 20.0, 25.0], 90.0, "perplexity")
    looks = looks_of(run)
    assert best_of(looks, "perplexity")["eval"]["perplexity"] == 20.0
    assert reached(looks, "perplexity", 30.0)["round"] == 2
    assert measure(run, "perplexity", 100.0)["rounds_to_target"] == 1


def family(label, finals, **over):
    cells = [
        {"seed": seed, "status": "done" if value is not None else "waiting",
         "measures": {"final": None if value is math.inf else value}}
        for seed, value in enumerate(finals)
    ]  # fmt: skip
    diverged = sum(value is math.inf for value in finals)
    return {"label": label, "over": over, "cells": cells, "diverged": diverged}


def test_differences_are_paired_by_seed_and_only_over_seeds_that_both_have():
    reference = family("a", [0.80, 0.90, 0.70, None])
    other = family("b", [0.85, 0.96, None, 0.10])
    (found,) = differences([reference, other], "a", "accuracy")
    assert found["difference"]["n"] == 2
    assert found["difference"]["mean"] == pytest.approx(0.055)
    assert found["verdict"] == "no difference shown"
    assert found["detectable"] > 0


@pytest.mark.parametrize(("metric", "verdict"), [("accuracy", "better"), ("perplexity", "worse")])
def test_a_verdict_knows_which_way_is_better(metric, verdict):
    reference = family("a", [1.0, 1.1, 0.9, 1.05])
    other = family("b", [2.0, 2.11, 1.9, 2.06])
    (found,) = differences([reference, other], "a", metric)
    assert found["verdict"] == verdict
    same = family("c", [1.5, 1.6, 1.4, 1.55])
    assert differences([reference, same], "a", metric)[0]["verdict"] == "cannot be tested"


def test_what_an_attack_costs_is_paired_with_the_run_without_it():
    families = [
        family("a", [0.9, 0.8], **{"strategy.name": "a", "attack.kind": "none"}),
        family("b", [0.7, 0.7], **{"strategy.name": "b", "attack.kind": "none"}),
        family("a x", [0.5, 0.6], **{"strategy.name": "a", "attack.kind": "ipm"}),
        family("b x", [0.6, None], **{"strategy.name": "b", "attack.kind": "ipm"}),
    ]
    add_lost_under_attack(families, "accuracy")
    lost = [[c["measures"]["lost_under_attack"] for c in f["cells"]] for f in families]
    assert lost[0] == lost[1] == [None, None]
    assert lost[2] == pytest.approx([0.4, 0.2])
    assert lost[3][0] == pytest.approx(0.1)
    assert lost[3][1] is None


def test_a_family_that_diverged_under_some_seed_is_not_tested_by_the_seeds_that_survived():
    reference = family("a", [0.5, 0.52, 0.51, 0.53])
    other = family("b", [0.9, 0.91, 0.92, math.inf])
    sound = family("c", [0.9, 0.91, 0.93, 0.92])
    found = differences([reference, other, sound], "a", "accuracy")
    assert [one["verdict"] for one in found] == ["cannot be tested", "better"]
    assert found[0]["difference"]["n"] == 3
    assert found[1]["p"] == found[1]["p_holm"]


def test_what_an_older_run_does_not_say_is_unknown_and_not_zero(tmp_path):
    run = written(tmp_path / "run", [0.5, 0.6])
    assert measure(run, "accuracy", None)["seconds_server"] is None
    assert measure(run, "accuracy", None)["client_steps"] == 6
