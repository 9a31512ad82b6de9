"""Verdicts on claims, from made-up seeds whose right answer is known and from real runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import fedtune
from fedtune.comparison.claims import check_claim, claim_record
from fedtune.comparison.grid import families
from fedtune.errors import ScenarioError
from fedtune.reporting.claim import claim_table
from fedtune.scenario import load_scenario, scenario_names
from fedtune.scenario.claim import ClaimPart, ClaimSection
from fedtune.scenario.compare import CompareSection
from tests.runs.kit import small

NOISE = np.random.default_rng(5).normal(0.0, 0.004, (4, 6))
NEW, OLD = {"strategy.name": "new"}, {"strategy.name": "old"}
PAGE = Path(__file__).parents[2] / "docs" / "claims.md"
CLAIMS = [name for name in scenario_names() if name.startswith("claims/")]


def record_of(**finals):
    """Families `name` or `name@rate` with a final metric and bytes under each of six seeds."""
    made = []
    for label, values in finals.items():
        name, _, rate = label.partition("_")
        cells = [
            {"seed": s, "status": "done", "measures": {"final": v, "bytes_up": 10.0 * len(name)},
             "reported": {"error": [[1, 0.0], [2, v]]}}
            for s, v in enumerate(values)
        ]  # fmt: skip
        made.append({"over": {"strategy.name": name, "rate": rate}, "cells": cells})
    return {"families": made, "lower_is_better": False, "seeds": 6, "metric": "accuracy",
            "level": 0.05}  # fmt: skip


def verdicts(record, *parts):
    claim = ClaimSection(paper="p", says="s", parts=[ClaimPart(says="x", **p) for p in parts])
    found = claim_record(claim, record)
    return found, [part["verdict"] for part in found["parts"]]


def around(mean, row):
    return (mean + NOISE[row]).tolist()


SIDES = {"left": NEW, "right": OLD}


@pytest.mark.parametrize(
    ("new", "test", "margin", "expected"),
    [
        (0.93, "better", 0.0, "shown"),
        (0.90, "better", 0.0, "not shown"),
        (0.87, "better", 0.0, "the opposite is shown"),
        (0.90, "no-worse", 0.02, "shown"),
        (0.89, "no-worse", 0.012, "not shown"),
        (0.87, "no-worse", 0.02, "not shown"),
    ],
)
def test_a_difference_is_shown_where_it_is_larger_than_noise(new, test, margin, expected):
    record = record_of(new=around(new, 0), old=around(0.90, 1))
    _, found = verdicts(record, {**SIDES, "test": test, "margin": margin})
    assert found == [expected]


def test_less_is_better_turns_a_verdict_round():
    record = record_of(new=around(0.93, 0), old=around(0.90, 1))
    assert verdicts(record, {**SIDES, "less_is_better": True})[1] == ["the opposite is shown"]
    assert verdicts({**record, "lower_is_better": True}, SIDES)[1] == ["the opposite is shown"]


def test_p_values_are_those_of_scipy_corrected_over_the_parts():
    record = record_of(new=around(0.905, 0), old=around(0.90, 1))
    found, _ = verdicts(record, SIDES, {**SIDES, "test": "no-worse", "margin": 0.003})
    difference = np.asarray(around(0.905, 0)) - np.asarray(around(0.90, 1))
    two = stats.ttest_1samp(difference, 0.0).pvalue
    one = stats.ttest_1samp(difference + 0.003, 0.0, alternative="greater").pvalue
    assert [part["p"] for part in found["parts"]] == pytest.approx([two, one])
    low, high = sorted([two, one])
    expected = {low: min(1.0, 2 * low), high: max(high, 2 * low)}
    assert [p["p_holm"] for p in found["parts"]] == pytest.approx([expected[two], expected[one]])


def test_across_a_sides_families():
    best, worst = around(0.95, 0), around(0.55, 1)
    record = record_of(new_a=best, new_b=worst, old_a=around(0.95, 2), old_b=around(0.90, 3))
    for across, expected in {
        "best": best,
        "worst": worst,
        "mean": (np.asarray(best) + worst) / 2,
        "drop": (np.asarray(best) - worst) / 2,
    }.items():
        found, verdict = verdicts(record, {**SIDES, "across": across})
        assert found["parts"][0]["values"]["left"] == pytest.approx(list(expected))
        assert verdict == ["not shown" if across == "best" else "the opposite is shown"]


def test_a_ratio_is_within_its_bounds_under_every_seed():
    record = record_of(new=around(0.9, 0), oldest=around(0.9, 1))
    part = {"left": NEW, "right": {"strategy.name": "oldest"}, "measure": "bytes_up",
            "test": "ratio"}  # fmt: skip
    assert verdicts(record, {**part, "between": [0.49, 0.51]})[1] == ["shown"]
    assert verdicts(record, {**part, "between": [0.51, 1.0]})[1] == ["not shown"]


def test_what_rules_report_is_averaged_over_rounds():
    record = record_of(new=around(0.8, 0), old=around(0.4, 1))
    found, _ = verdicts(record, {**SIDES, "measure": "rule.error", "less_is_better": False})
    assert found["parts"][0]["values"]["left"] == pytest.approx([v / 2 for v in around(0.8, 0)])
    assert found["parts"][0]["verdict"] == "shown"


def test_divergence_and_missing_runs_are_not_counted_as_results():
    lost = record_of(new=[*around(0.93, 0)[:5], None], old=around(0.90, 1))
    assert verdicts(lost, SIDES)[1] == ["cannot be tested"]
    waiting = record_of(new=around(0.93, 0)[:5], old=around(0.90, 1))
    found, parts = verdicts(waiting, SIDES, SIDES)
    assert (parts, found["verdict"]) == (["not finished"] * 2, "not finished")


def test_a_claim_is_shown_if_all_its_parts_are():
    record = record_of(new=around(0.93, 0), old=around(0.90, 1), other=around(0.9003, 2))
    good, bad = SIDES, {"left": OLD, "right": NEW}
    even = {"left": OLD, "right": {"strategy.name": "other"}}
    bytes_alike = {**SIDES, "measure": "bytes_up", "test": "ratio", "between": [0.9, 1.1]}
    assert verdicts(record, good, bytes_alike)[0]["verdict"] == "shown"
    assert verdicts(record, good, bad)[0]["verdict"] == "mixed"
    assert verdicts(record, bad, even)[0]["verdict"] == "not shown"
    assert verdicts(record, bad)[0]["verdict"] == "the opposite is shown"
    assert verdicts(record, even, bytes_alike)[0]["verdict"] == "not shown"
    assert verdicts(record, bytes_alike)[0]["verdict"] == "shown"


def test_the_best_of_a_side_is_one_family_and_one_that_diverged_is_not_it():
    odd = [0.99, 0.5, 0.99, 0.5, 0.99, 0.5]
    record = record_of(new_a=around(0.8, 0), new_b=odd, new_c=[*around(0.9, 1)[:5], None],
                       old=around(0.5, 2))  # fmt: skip
    found, _ = verdicts(record, {**SIDES, "across": "best"})
    assert found["parts"][0]["values"]["left"] == around(0.8, 0)
    for across in ("worst", "mean", "drop"):
        assert verdicts(record, {**SIDES, "across": across})[1] == ["cannot be tested"]
    low = record_of(new_a=around(0.8, 0), new_b=odd, old=around(0.5, 2))
    found, _ = verdicts(low, {**SIDES, "across": "best", "less_is_better": True})
    assert found["parts"][0]["values"]["left"] == odd


def test_a_list_stands_for_any_of_its_members():
    record = record_of(new=around(0.8, 0), old=around(0.7, 1), other=around(0.9, 2))
    either = {"strategy.name": ["old", "other"]}
    found, _ = verdicts(record, {"left": NEW, "right": either, "across": "worst"})
    assert found["parts"][0]["values"]["right"] == around(0.7, 1)


@pytest.mark.parametrize("measure", ["rounds_to_target", "client_steps", "epsilon", "seconds"])
def test_of_costs_less_is_better(measure):
    record = record_of(new=around(0.8, 0), old=around(0.7, 1))
    for family in record["families"]:
        for cell in family["cells"]:
            cell["measures"][measure] = cell["measures"]["final"]
    assert verdicts(record, {**SIDES, "measure": measure})[1] == ["the opposite is shown"]


def test_the_detectable_margin_is_one_that_such_noise_shows_held_in_four_of_five_draws():
    draw = np.random.default_rng(7)
    record = record_of(new=around(0.9, 0), old=around(0.9, 1))
    found, _ = verdicts(record, {**SIDES, "test": "no-worse", "margin": 0.001})
    part = found["parts"][0]
    samples = draw.normal(0.0, part["difference"]["sd"], (4000, 6)) + part["detectable"]
    shown = stats.ttest_1samp(samples, 0.0, axis=1, alternative="greater").pvalue < 0.05
    assert float(shown.mean()) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claims_parts_find_their_runs(name):
    scenario = load_scenario(name)
    assert scenario.compare.seeds >= 5
    found = families(scenario, scenario.compare.axes)
    check_claim(scenario.compare.claim, [family.over for family in found if family.scenario])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"measure": "finale"}, r"compare.claim.parts.0.measure = 'finale': allowed: final"),
        ({"measure": "rule.x", "right": {"strategy.name": ["a", "b"]}}, "parts.0.right.*no comb"),
        ({"left": {"strategy.name": "nobody"}}, "compare.claim.parts.0.left.*no combination"),
    ],
)
def test_a_claim_about_nothing_is_refused(changes, said):
    claim = ClaimSection(paper="p", says="s", parts=[ClaimPart(says="x", **{**SIDES, **changes})])
    with pytest.raises(ScenarioError, match=said):
        check_claim(claim, [NEW, OLD])


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ({"variants": {"a": {"run.seed": 1}}}, "run.seed cannot vary"),
        ({"variants": {"a": {"compare.seeds": 1}}}, "compare.seeds cannot vary"),
        ({"variants": {"a": {"local.lr": 1}}, "tune": {"local.lr": [1]}}, "in over or in tune"),
        ({"over": {"variant": ["a"]}}, "variant cannot be an axis"),
        ({"variants": {"a": {}}, "reference": {"variant": "b"}}, "variant = 'b' is not one of"),
    ],
)
def test_variants_that_cannot_be(compare, said):
    with pytest.raises(ValueError, match=said):
        CompareSection(**compare)


def test_variants_are_compared_and_the_claim_is_judged_and_shown(tmp_path):
    base = load_scenario("quickstart", small(run__rounds=1))
    raw = base.model_dump(exclude_none=True)
    raw["compare"] = {
        "seeds": 2,
        "variants": {
            "wide": {"strategy.name": "fedavg", "strategy.aggregation_error": True},
            "narrow": {"strategy.name": "ffa-lora", "adapter.rank": 2},
        },
    }  # fmt: skip
    raw["compare"]["claim"] = {
        "paper": "None",
        "says": "B alone is fewer bytes.",
        "parts": [{"says": "fewer", "left": {"variant": "narrow"}, "right": {"variant": "wide"},
                   "measure": "bytes_up", "test": "ratio", "between": [0.0, 0.99]}],
    }  # fmt: skip
    path = tmp_path / "scenario.toml"
    path.write_text(fedtune.scenario.dump_scenario(fedtune.scenario.Scenario.model_validate(raw)))
    done = fedtune.compare(path, out=tmp_path / "out")
    record = done.record
    assert [family["label"] for family in record["families"]] == ["wide", "narrow"]
    assert [family["strategy"] for family in record["families"]] == ["fedavg", "ffa-lora"]
    assert record["claim"]["verdict"] == "shown"
    assert claim_table(record).rows[0][1].text == "shown"
    for cell in record["families"][0]["cells"]:
        assert 0.0 < cell["reported"]["aggregation_error"][0][1] < 1.0
    page = (done.path / "report.html").read_text("utf-8")
    assert "B alone is fewer bytes." in page
    assert "Verdict: shown" in (done.path / "comparison.md").read_text("utf-8")


@pytest.mark.long
@pytest.mark.parametrize("name", CLAIMS)
def test_a_claims_command_gives_the_verdict_of_the_page(tmp_path, name):
    section = PAGE.read_text("utf-8").partition(f"<!-- claim: {Path(name).name} -->")[2]
    verdict = re.search(r"\*\*Verdict: (.*?)\.\*\*", section.partition("<!-- end -->")[0])
    if verdict is None:
        pytest.skip(f"{name} has not been run for the page")
    claim = fedtune.compare(name, out=tmp_path / "out").record["claim"]
    assert claim["verdict"] == verdict[1]
    for part in claim["parts"]:
        assert f"\n| {part['says']} | {part['verdict']} |" in section
