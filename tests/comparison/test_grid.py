"""Axes, combinations, and those that cannot be."""

from __future__ import annotations

import math
import tomllib

import pytest

from fedtune.comparison.cells import Cell, CellStore
from fedtune.comparison.grid import expand, families, label_of, parse_axes, settled
from fedtune.comparison.tuning import Trial, worst_of
from fedtune.errors import ScenarioError
from fedtune.runs.strategies import strategy_names
from fedtune.scenario import Scenario, dump_scenario, load_scenario
from fedtune.scenario.loading import validate

BASE = load_scenario("quickstart")


def test_values_are_toml_else_text_and_commas_in_brackets_do_not_part_them():
    given = [
        "strategy.name=fedavg, ffa-lora",
        "local.lr=1e-3,0.01",
        'adapter.targets=["query", "value"],auto',
        'clients.partition={kind = "dirichlet", alpha = 0.3},{kind = "iid"}',
    ]
    assert parse_axes("--over", given) == {
        "strategy.name": ["fedavg", "ffa-lora"],
        "local.lr": [1e-3, 0.01],
        "adapter.targets": [["query", "value"], "auto"],
        "clients.partition": [{"kind": "dirichlet", "alpha": 0.3}, {"kind": "iid"}],
    }


@pytest.mark.parametrize("text", ["local.lr", "=3", "local.lr=", "local.lr=  "])
def test_an_axis_that_is_none(text):
    with pytest.raises(ScenarioError, match=r"--over .*must be key=value"):
        parse_axes("--over", [text])


def test_all_stands_for_every_value_that_there_is():
    axes = expand({"strategy.name": ["all"], "engine.precision": ["all"], "local.lr": [1e-3]})
    assert axes["strategy.name"] == strategy_names()
    assert axes["engine.precision"] == ["float32", "bfloat16", "float64"]
    assert axes["local.lr"] == [1e-3]
    assert "auto" not in expand({"adapter.kind": ["all"]})["adapter.kind"]
    with pytest.raises(ScenarioError, match=r"local.lr has no list of all its values"):
        expand({"local.lr": ["all"]})


def test_what_the_mathematics_forbids_is_listed_and_what_is_misspelt_is_refused():
    axes = {"strategy.name": ["fedavg", "ffa-lora"], "adapter.kind": ["lora", "ffa"]}
    found = {family.label: family for family in families(BASE, axes)}
    assert list(found) == [
        "fedavg, kind lora", "fedavg, kind ffa", "ffa-lora, kind lora", "ffa-lora, kind ffa",
    ]  # fmt: skip
    assert [label for label, f in found.items() if f.scenario is None] == ["ffa-lora, kind lora"]
    assert "needs one of: ffa" in found["ffa-lora, kind lora"].reason
    with pytest.raises(ScenarioError, match=r"strategy.name = 'fedvag': allowed"):
        families(BASE, {"strategy.name": ["fedavg", "fedvag"]})
    with pytest.raises(ScenarioError, match=r"local.lr = -1"):
        families(BASE, {"local.lr": [1e-3, -1.0]})
    with pytest.raises(ScenarioError, match=r"no combination is possible.*needs one of: ffa"):
        families(BASE, {"strategy.name": ["ffa-lora"], "adapter.kind": ["lora"]})


def test_a_scenario_that_trains_nothing_is_a_combination_that_cannot_be():
    axes = {"adapter.kind": ["lora", "none"], "task.head": ["shared", "frozen"]}
    skipped = [family.over for family in families(BASE, axes) if family.scenario is None]
    assert skipped == [{"adapter.kind": "none", "task.head": "frozen"}]


def test_names_for_people():
    assert label_of({"strategy.name": "flag", "adapter.rank": 4}) == "flag, rank 4"
    assert label_of({"local.lr": 1e-3}) == "lr 0.001"
    assert label_of({"clients.partition": {"kind": "dirichlet", "alpha": 0.3}}) == (
        "partition dirichlet 0.3"
    )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"over": {"run.seed": [1, 2]}}, "run.seed cannot be an axis"),
        ({"over": {"local.lr": []}}, "local.lr has no values"),
        ({"over": {"local.lr": [1e-3, 1e-3]}}, "names a value twice"),
        ({"over": {"local.lr": [1e-3]}, "tune": {"local.lr": [1e-3]}}, "in over and in tune"),
        ({"over": {"local.lr": [1e-3]}, "reference": {"local.lr": 2.0}}, "is not one of"),
        ({"reference": {"local.lr": 2.0}}, "is not an axis"),
        ({"seeds": 0}, "greater than or equal to 1"),
        ({"budget": {"kind": "energy"}}, "'rounds', 'bytes_up' or 'client_steps'"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(section, message):
    with pytest.raises(ScenarioError, match=message):
        load_scenario(BASE, {"compare": section})


def test_a_cell_is_found_by_its_scenario_and_not_by_its_name(tmp_path):
    store = CellStore(tmp_path)
    one, two = settled(BASE, {"local.lr": 1e-3}), settled(BASE, {"local.lr": 2e-3})
    first = store.directory(Cell("a", one)).path
    first.mkdir(parents=True)
    assert store.directory(Cell("b, renamed", one)).path == first
    assert store.directory(Cell("a", two)).path != first
    whole = settled(load_scenario(BASE, {"compare": {"seeds": 7}}), {"local.lr": 1e-3})
    assert whole == one
    assert isinstance(one, Scenario)


def test_attacks_that_a_strategy_cannot_meet_are_skipped_one_by_one():
    axes = {"strategy.name": ["frl", "fedavg"], "attack.kind": ["alie", "vem", "label-flip"]}
    found = {
        tuple(family.over.values()): family.scenario is not None for family in families(BASE, axes)
    }
    assert found == {
        ("frl", "alie"): False, ("frl", "vem"): True, ("frl", "label-flip"): True,
        ("fedavg", "alie"): True, ("fedavg", "vem"): False, ("fedavg", "label-flip"): True,
    }  # fmt: skip


def test_the_shipped_comparisons_can_be():
    for name in ("rerce", "rerce-adapters", "byzantine"):
        base = load_scenario(name)
        axes = {key: values[:2] for key, values in base.compare.over.items()}
        assert all(family.scenario is not None for family in families(base, axes))


def test_an_attack_of_an_axis_may_bring_its_parameters():
    huge = {"kind": "gaussian", "sigma": 1e6}
    axes = {"attack.kind": ["none", "gaussian", huge], "attack.fraction": [0.0, 0.2]}
    found = {family.label: family.scenario.attack for family in families(BASE, axes)}
    assert list(found)[2:] == [
        "kind gaussian, fraction 0", "kind gaussian, fraction 0.2",
        "kind gaussian 1e+06, fraction 0", "kind gaussian 1e+06, fraction 0.2",
    ]  # fmt: skip
    assert found["kind gaussian, fraction 0.2"].parameters() == {}
    assert found["kind gaussian 1e+06, fraction 0.2"].parameters() == {"sigma": 1e6}
    assert found["kind gaussian 1e+06, fraction 0"].kind == "none"
    assert huge == {"kind": "gaussian", "sigma": 1e6}


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"sigma": 1e6}, r"attack.kind = \{'sigma': 1000000.0\}: names no kind of attack"),
        ({"kind": "alie", "fraction": 0.5}, "attack.fraction is an axis of its own"),
        ({"kind": "alie", "sigma": 2.0}, "attack.sigma: unknown key for 'alie'"),
        ({"kind": "gaussian", "sigma": "far"}, "attack.sigma = 'far'"),
    ],
)
def test_an_attack_of_an_axis_that_is_none_is_refused(attack, message):
    with pytest.raises(ScenarioError, match=message):
        families(BASE, {"attack.kind": [attack], "attack.fraction": [0.2]})


@pytest.mark.parametrize("name", ["byzantine", "byzantine-full"])
def test_defences_are_tuned_for_and_shown_under_a_huge_factor(name):
    """What has no bound, such as `mean` after NNM, stands among the others otherwise."""
    section = load_scenario(name).compare
    assert "attack.kind" in section.worst_over
    for axis in (section.over, section.tune_at if "attack.kind" in section.tune_at else {}):
        attacks = axis.get("attack.kind", section.over["attack.kind"])
        tables = [attack for attack in attacks if isinstance(attack, dict)]
        assert any(1e6 in attack.values() for attack in tables)
    base = load_scenario(name)
    axes = {**{key: values[:1] for key, values in section.over.items()}, "attack.kind": attacks}
    assert all(family.scenario is not None for family in families(base, axes))
    again = validate(tomllib.loads(dump_scenario(base)))
    assert again.compare == section


def test_a_defence_that_an_attack_breaks_under_every_candidate_is_tuned_by_the_others():
    trials = [Trial({"local.lr": rate}, []) for rate in (1, 2, 3)]
    broken = [math.nan, math.nan, None]
    values, worst = worst_of([(trials, [0.7, 0.9, 0.8]), (trials, broken)], "accuracy")
    assert [value["local.lr"] for value in values] == [1, 2, 3]
    assert worst == [0.7, 0.9, 0.8]
    _, worst = worst_of([(trials, [0.7, 0.9, 0.8]), (trials, [0.1, math.nan, 0.2])], "accuracy")
    assert worst == [0.1, None, 0.2]
    assert worst_of([(trials, broken), (trials, broken)], "accuracy")[1] == [None] * 3
