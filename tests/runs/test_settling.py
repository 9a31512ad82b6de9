"""What a run settles as it begins, it keeps; also when it is lengthened."""

from __future__ import annotations

import pytest

import fedtune
from fedtune.comparison.directory import ComparisonDirectory
from fedtune.comparison.execute import Execution
from fedtune.comparison.progress import ConsoleGrid
from fedtune.errors import ScenarioError
from fedtune.runs.api import overridden
from fedtune.runs.build import build
from fedtune.runs.directory import RunDirectory
from fedtune.runs.participations import scheduled_rounds
from fedtune.runs.settling import settle_paths, settle_rounds
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.compare import BudgetSection, CompareSection
from tests.runs.kit import adapter_bytes, lines, small

COSINE = {"local__round_schedule": "cosine"}
LINEAR = {"local__round_schedule": "linear"}
FRAME = {"strategy__name": "fed-sb"}
SECRET = {"privacy": {"mechanism": "example", "epsilon": 4.0, "delta": 1e-4}}


def settled(**changes) -> Scenario:
    return settle_paths(load_scenario("quickstart", small(**changes)))


def lengths(scenario: Scenario) -> tuple:
    return scenario.run.rounds, scenario.local.schedule_rounds, scenario.privacy.rounds


@pytest.mark.parametrize("changes", [COSINE, LINEAR, FRAME], ids=["cosine", "linear", "frame"])
def test_the_length_of_a_schedule_is_the_runs_own_unless_it_is_given(changes):
    assert lengths(settled(**changes, run__rounds=7)) == (7, 7, "auto")
    given = settled(**changes, run__rounds=7, local__schedule_rounds=3)
    assert lengths(given) == (7, 3, "auto")
    assert settle_paths(given) == given


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"local__round_schedule": "exponential"},
        {**FRAME, "adapter__init_step": 0.1},
        {**FRAME, "adapter__init": "random"},
    ],
    ids=["constant", "exponential", "given step", "random frame"],
)
def test_what_has_no_length_says_nothing_of_it(changes):
    """So that cells of comparisons that were trained before are found again."""
    assert lengths(settled(**changes, run__rounds=7)) == (7, "auto", "auto")


def test_what_is_not_settled_follows_the_rounds():
    scenario = load_scenario("quickstart", small(**COSINE, run__rounds=9))
    assert scheduled_rounds(scenario) == 9
    assert scheduled_rounds(settled(**COSINE, local__schedule_rounds=4)) == 4


@pytest.mark.parametrize("changes", [COSINE, LINEAR, FRAME, {**COSINE, **SECRET}],
                         ids=["cosine", "linear", "frame", "private"])  # fmt: skip
def test_a_run_that_is_lengthened_keeps_its_lengths(tmp_path, changes):
    directory = RunDirectory.create(tmp_path / "run", settled(**changes, run__rounds=4))
    before = lengths(directory.scenario)
    directory.write_scenario(overridden(directory, {"run.rounds": 10}))
    assert lengths(directory.scenario) == (10, *before[1:])
    directory.write_scenario(overridden(directory, ["run.rounds=30"]))
    assert lengths(directory.scenario) == (30, *before[1:])
    with pytest.raises(ScenarioError, match=r"a resumed run can change: run\.rounds"):
        overridden(directory, {"local.schedule_rounds": 30})


def test_a_run_from_before_there_was_a_length_takes_its_rounds_for_it(tmp_path):
    old = load_scenario("quickstart", small(**COSINE, **SECRET, run__rounds=4))
    directory = RunDirectory.create(tmp_path / "run", old)
    assert lengths(overridden(directory, {"run.rounds": 10})) == (10, 4, 4)


def test_the_engine_and_the_first_step_follow_the_settled_length():
    at = {n: build(settled(**COSINE, **FRAME, run__rounds=n)) for n in (20, 80)}
    kept = build(settled(**COSINE, **FRAME, run__rounds=80, local__schedule_rounds=20))
    assert kept.engine.setting.rounds == at[20].engine.setting.rounds == 20
    assert at[80].engine.setting.rounds == 80
    assert kept.strategy.opening.size == at[20].strategy.opening.size
    step = [at[n].strategy.opening.size for n in (20, 80)]
    assert step[0] > step[1] > 0


@pytest.mark.parametrize("kind", ["bytes_up", "client_steps", "rounds"])
def test_a_budget_settles_what_follows_from_its_rounds(tmp_path, kind):
    """FFA sends half and so has more rounds for its bytes; each schedule ends with its run."""
    amount = 5 if kind == "rounds" else None
    section = CompareSection(over={"strategy.name": ["fedavg", "ffa-lora"]}, seeds=2,
                             budget=BudgetSection(kind=kind, amount=amount))  # fmt: skip
    private = {"mechanism": "example", "noise_multiplier": 1.0, "delta": 1e-4}
    base = load_scenario("quickstart", small(**COSINE, privacy=private, run__rounds=4))
    base.compare = section
    directory = ComparisonDirectory(tmp_path / "compare")
    execution = Execution(base, directory, ConsoleGrid(quiet=True), "budget", "command")
    execution.check()
    rounds = set()
    for row in execution.possible:
        assert len(row.cells) == 2
        for cell in row.cells:
            count = cell.scenario.run.rounds
            assert lengths(cell.scenario) == (count, count, count)
            assert settle_paths(load_scenario(cell.scenario)) == cell.scenario
            rounds.add(count)
    assert {"bytes_up": max(rounds) > 5, "client_steps": rounds == {4}, "rounds": rounds == {5}}[
        kind
    ]


def test_a_lengthened_run_is_what_its_scenario_says(tmp_path):
    """Both the short and the long one equal a run of their own scenario.toml."""
    for name, changes in (("cosine", COSINE), ("linear", LINEAR), ("frame", FRAME)):
        short = fedtune.run("quickstart", small(**changes, run__rounds=2), tmp_path / name)
        before = lines(short)
        again = fedtune.run(short.path / "scenario.toml", out=tmp_path / f"{name} again")
        assert lines(again) == before
        long = fedtune.resume(short.path, {"run.rounds": 5})
        assert lines(long)[:2] == before
        whole = fedtune.run(long.path / "scenario.toml", out=tmp_path / f"{name} whole")
        assert lines(whole) == lines(long)
        assert adapter_bytes(whole) == adapter_bytes(long)


def test_settling_twice_settles_once():
    for changes in (COSINE, FRAME, SECRET, {}):
        once = settled(**changes)
        assert settle_rounds(once) == once
