"""Comparisons of small real runs: paired, economical, resumable, and each cell a run of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fedtune
from fedtune.comparison.api import report, resume_comparison
from fedtune.comparison.cells import CellStore
from fedtune.comparison.progress import ConsoleGrid
from fedtune.errors import RunError, ScenarioError
from fedtune.runs.directory import RunDirectory
from tests.runs.kit import adapter_bytes, lines, small

ONE = {"strategy.name": ["fedavg"]}
SUMS = {
    "task__kind": "causal-lm", "task__base": "builtin:llama-words", "task__data": "builtin:sums",
    "task__instruction": "instruction", "task__response": "response", "task__extract": "(.*)",
    "task__extract_tokens": 8, "clients__partition": {"kind": "iid"},
}  # fmt: skip
OVER = {"strategy.name": ["fedavg", "ffa-lora"]}


class Counting(ConsoleGrid):
    """Counts trained rounds; can stop like Ctrl-C."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__(quiet=True)
        self.trained, self.stop_after = 0, stop_after

    def finished_round(self, line):
        self.trained += 1
        if self.trained == self.stop_after:
            raise KeyboardInterrupt


def directories(found, label):
    cells = {family["label"]: family["cells"] for family in found.record["families"]}[label]
    return [RunDirectory(found.path / cell["directory"]) for cell in cells]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    path = tmp_path_factory.mktemp("compare") / "whole"
    return fedtune.compare("quickstart", OVER, small(), path, seeds=2)


def test_within_a_seed_all_have_the_same_partition_clients_and_batches(done):
    both = zip(directories(done, "fedavg"), directories(done, "ffa-lora"), strict=True)
    for one, other in both:
        assert (one.path / "partition.npz").read_bytes() == (
            other.path / "partition.npz"
        ).read_bytes()
        mine, theirs = one.metrics, other.metrics
        for key in ("client_ids", "client_steps"):
            assert [line[key] for line in mine] == [line[key] for line in theirs]
        assert one.summary["initial"] == other.summary["initial"]
    first, second = directories(done, "fedavg")
    assert [line["client_ids"] for line in first.metrics] != [
        line["client_ids"] for line in second.metrics
    ]


@pytest.mark.parametrize("strategy", ["fedavg", "ffa-lora"])
def test_a_cell_is_what_a_run_of_its_own_would_be(tmp_path, done, strategy):
    """Cells share base model and data; nothing of one may reach another."""
    cell = directories(done, strategy)[1]
    overrides = small(strategy__name=strategy, run__seed=1)
    alone = fedtune.run("quickstart", overrides, tmp_path / "alone")
    assert adapter_bytes(cell) == adapter_bytes(alone)
    assert lines(cell) == lines(alone)


def test_the_table_of_cells(done):
    table = fedtune.frame(done.path)
    assert len(table) == 4
    assert set(table["strategy.name"]) == {"fedavg", "ffa-lora"}
    for _, row in table.iterrows():
        cell = directories(done, row["family"])[row["seed"]]
        assert row["final"] == cell.summary["final"]["accuracy"]
        assert row["bytes_up"] == cell.summary["bytes_up"]
        assert row["worst_client"] == cell.summary["clients"]["worst"]["accuracy"]


def test_the_target_is_what_the_comparison_says(done):
    """And what runs cost until they reach it follows from it; nothing is trained for that."""
    watch = Counting()
    try:
        for target, within in ((0.0, True), (2.0, False)):
            again = fedtune.compare(
                "quickstart", OVER, small(), done.path, watch, seeds=2, target=target
            )
            assert again.record["target"] == target
            families = again.record["families"]
            rounds = [c["measures"]["rounds_to_target"] for f in families for c in f["cells"]]
            assert rounds == [1 if within else None] * 4
    finally:
        plain = fedtune.compare("quickstart", OVER, small(), done.path, watch, seeds=2)
    assert watch.trained == 0
    assert plain.record["target"] not in (None, 0.0, 2.0)


def test_what_is_done_is_not_trained_again_and_what_is_new_is(tmp_path, done):
    path = tmp_path / "growing"
    watch = Counting()
    first = fedtune.compare(
        "quickstart", {"strategy.name": ["fedavg"]}, small(), path, watch, seeds=1
    )
    assert watch.trained == 2
    stamp = (directories(first, "fedavg")[0].path / "summary.json").stat().st_mtime_ns
    watch = Counting()
    grown = fedtune.compare("quickstart", OVER, small(), path, watch, seeds=2)
    assert watch.trained == 3 * 2
    assert (directories(grown, "fedavg")[0].path / "summary.json").stat().st_mtime_ns == stamp
    watch = Counting()
    again = fedtune.compare("quickstart", OVER, small(), path, watch, seeds=2)
    assert watch.trained == 0
    for label in ("fedavg", "ffa-lora"):
        pairs = zip(directories(again, label), directories(done, label), strict=True)
        assert all(adapter_bytes(one) == adapter_bytes(other) for one, other in pairs)


def test_interrupted_in_the_middle_of_a_cell_it_goes_on_from_there(tmp_path, done):
    path = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fedtune.compare("quickstart", OVER, small(), path, Counting(stop_after=3), seeds=2)
    page = report(path)[-1].read_text("utf-8")
    assert "not finished: 1 of 4 runs" in page
    watch = Counting()
    whole = resume_comparison(path, watch)
    assert watch.trained == 4 * 2 - 3
    for label in ("fedavg", "ffa-lora"):
        pairs = zip(directories(whole, label), directories(done, label), strict=True)
        assert all(adapter_bytes(one) == adapter_bytes(other) for one, other in pairs)
        pairs = zip(directories(whole, label), directories(done, label), strict=True)
        assert all(lines(one) == lines(other) for one, other in pairs)


def test_a_search_sees_no_test_row_and_its_choice_is_trained(tmp_path):
    path = tmp_path / "tuned"
    rates = [1e-5, 1e-2, 1e-3]
    found = fedtune.compare(
        "quickstart",
        {"strategy.name": ["fedavg"]},
        small(),
        path,
        seeds=1,
        tune={"local.lr": rates},
    )
    (family,) = found.record["families"]
    scores = [trial["score"] for trial in family["trials"]]
    assert family["chosen"] == {"local.lr": rates[int(np.argmax(scores))]}
    (cell,) = directories(found, "fedavg")
    assert cell.scenario.local.lr == family["chosen"]["local.lr"]
    assert cell.scenario.task.validation is None
    trials = [RunDirectory(p) for p in sorted((path / "cells").glob("tune-*"))]
    assert len(trials) == 3
    for trial, score in zip(
        sorted(trials, key=lambda t: rates.index(t.scenario.local.lr)), scores, strict=True
    ):
        assert trial.scenario.task.validation == 0.2
        assert trial.summary["final"]["accuracy"] == score
        assert [line["eval"] is None for line in trial.metrics] == [True, False]
    assert family["at_edge"] == (["local.lr"] if family["chosen"]["local.lr"] != 1e-3 else [])


@pytest.mark.long
def test_a_defence_is_tuned_for_its_worst_case_and_an_attack_by_nobody_is_trained_once(tmp_path):
    rates = [1e-4, 3e-2]
    found = fedtune.compare(
        "quickstart",
        {
            "strategy.rule": ["mean", "median"],
            "attack.kind": ["none", "sign-flip", "ipm"],
            "attack.fraction": [0.0, 0.4],
        },
        small(clients__participation__value=1.0),
        tmp_path / "c",
        seeds=1,
        tune={"local.lr": rates},
        tune_at={"attack.kind": ["sign-flip", "ipm"], "attack.fraction": [0.4]},
        worst_over=["attack.kind", "attack.fraction"],
    )
    for rule in ("mean", "median"):
        group = [f for f in found.record["families"] if f["over"]["strategy.rule"] == rule]
        searched = [f for f in group if f["trials"]]
        assert [(f["over"]["attack.kind"], f["over"]["attack.fraction"]) for f in searched] == [
            ("sign-flip", 0.4), ("ipm", 0.4)
        ]  # fmt: skip
        worst = [min(f["trials"][i]["score"] for f in searched) for i in range(2)]
        assert all(f["chosen"] == {"local.lr": rates[int(np.argmax(worst))]} for f in group)
        none = [f["cells"][0] for f in group if f["over"]["attack.fraction"] == 0.0]
        assert len(none) == 3
        assert len({cell["directory"] for cell in none}) == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"worst_over": ["attack.kind"]}, "not an axis"),
        ({"tune_at": {"strategy.name": ["fedavg"]}}, "must be in worst_over"),
        (
            {"tune_at": {"strategy.name": ["fedprox"]}, "worst_over": ["strategy.name"]},
            "is not one of",
        ),
    ],
)
def test_axes_of_a_search_are_axes_of_the_comparison(tmp_path, setting, message):
    with pytest.raises(ScenarioError, match=message):
        fedtune.compare("quickstart", OVER, small(), tmp_path / "c", **setting)
    assert not (tmp_path / "c").exists()


def test_budgets_are_kept_and_the_next_round_would_exceed_them(tmp_path):
    for kind, steps in (("bytes_up", 2), ("client_steps", 2)):
        found = fedtune.compare(
            "quickstart", OVER, small(run__eval_every=50), tmp_path / kind, seeds=1,
            budget={"kind": kind},
        )  # fmt: skip
        amount = found.record["budget"]["amount"]
        for label in ("fedavg", "ffa-lora"):
            (run,) = directories(found, label)
            spent = sum(line[kind] for line in run.metrics)
            assert spent <= amount < spent + run.metrics[-1][kind]
        if kind == "bytes_up":
            assert directories(found, "ffa-lora")[0].summary["rounds"] > steps
        (reference,) = directories(found, "fedavg")
        assert reference.summary[kind] == amount


def test_a_budget_that_pays_for_nothing(tmp_path):
    with pytest.raises(ScenarioError, match="does not pay for one round"):
        fedtune.compare("quickstart", OVER, small(), tmp_path / "poor", seeds=1,
                        budget={"kind": "bytes_up", "amount": 10})  # fmt: skip


def test_a_cell_that_fails_is_reported_and_the_others_are_kept(tmp_path, monkeypatch):
    path = tmp_path / "failing"
    train = CellStore.train

    def failing(self, cell, library, observer):
        if cell.scenario.strategy.name == "ffa-lora":
            raise RunError("client 3 failed in train: planted")
        return train(self, cell, library, observer)

    monkeypatch.setattr(CellStore, "train", failing)
    with pytest.raises(RunError, match=r"1 of the runs failed; ffa-lora, seed 0: client 3 failed"):
        fedtune.compare("quickstart", OVER, small(), path, seeds=1)
    record = json.loads((path / "comparison.json").read_text())
    assert [f["cells"][0]["status"] for f in record["families"]] == ["done", "failed"]
    assert "planted" in (path / "report.html").read_text("utf-8")
    monkeypatch.undo()
    mended = resume_comparison(path)
    assert [f["cells"][0]["status"] for f in mended.record["families"]] == ["done", "done"]


def test_what_is_wrong_is_said_before_anything_is_trained(tmp_path):
    for over, overrides, message in (
        ({"strategy.name": ["fedvag"]}, small(), "allowed"),
        ({"task.data": ["builtin:digits", "builtin:none"]}, small(), "no such builtin"),
        ({"adapter.targets": [["q_proj"], ["nowhere"]]}, small(), "nowhere"),
        ({"clients.count": [6, 5000]}, small(), "more clients than"),
    ):
        watch = Counting()
        with pytest.raises(ScenarioError, match=message):
            fedtune.compare("quickstart", over, overrides, tmp_path / "wrong", watch, seeds=1)
        assert not (tmp_path / "wrong").exists()
    with pytest.raises(ScenarioError, match=r"--metric 'f1': allowed: loss, accuracy"):
        fedtune.compare("quickstart", OVER, small(), tmp_path / "wrong", seeds=1, metric="f1")
    with pytest.raises(ScenarioError, match=r"compare.sedes: unknown key"):
        fedtune.compare("quickstart", OVER, small(), tmp_path / "wrong", sedes=1)


def test_a_comparison_can_be_moved(done, tmp_path):
    moved = tmp_path / "moved"
    done.path.rename(moved)
    try:
        watch = Counting()
        resume_comparison(moved, watch)
        assert watch.trained == 0
    finally:
        moved.rename(done.path)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"over": {"strategy.name": ["all"]}, "reference": {"strategy.name": "fedvag"}},
         "is none of the combinations"),
        ({}, {"over": {**OVER, "adapter.kind": ["ffa", "lora"]},
              "reference": {"strategy.name": "ffa-lora", "adapter.kind": "lora"}},
         "--reference ffa-lora, kind lora: cannot be: .*needs one of: ffa"),
        ({}, {"over": ONE, "tune": {"adapter.targets": [["nowhere"]]}}, "nowhere"),
        ({}, {"over": ONE, "tune": {"local.lr": [-1.0]}}, "local.lr = -1"),
        (SUMS, {"over": ONE, "tune": {"local.lr": [1e-3]}, "metric": "exact_match"},
         r"--metric 'exact_match': allowed \(of a search, on validation data\)"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_and_leave_what_is_there(
    tmp_path, done, changes, settings, message
):
    before = (done.path / "comparison.toml").read_bytes()
    with pytest.raises(ScenarioError, match=message):
        fedtune.compare("quickstart", overrides=small(**changes), out=done.path, **settings)
    assert (done.path / "comparison.toml").read_bytes() == before
    assert resume_comparison(done.path).record["differences"] == done.record["differences"]


def test_a_budget_of_rounds_is_a_number_of_rounds(tmp_path):
    found = fedtune.compare("quickstart", ONE, small(), tmp_path / "r", seeds=1,
                            budget={"kind": "rounds", "amount": 3})  # fmt: skip
    assert directories(found, "fedavg")[0].summary["rounds"] == 3


def test_where_it_cannot_be_written(tmp_path, done):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "something").write_text("")
    for out in (tmp_path / "file", tmp_path / "folder", directories(done, "fedavg")[0].path):
        with pytest.raises(ScenarioError, match=r"--out .*(cannot be used|is no comparison)"):
            fedtune.compare("quickstart", ONE, small(), out, seeds=1)


def test_a_strategy_that_raises_anything_costs_its_own_cells_only(tmp_path, monkeypatch):
    from strategies.ffa_lora import FFALoRA

    def broken(self, server_round, replies):
        raise KeyError("planted")

    monkeypatch.setattr(FFALoRA, "aggregate_train", broken)
    with pytest.raises(RunError, match=r"ffa-lora, seed 0: KeyError: 'planted'"):
        fedtune.compare("quickstart", OVER, small(), tmp_path / "b", seeds=1)
    assert fedtune.frame(tmp_path / "b")["status"].tolist() == ["done", "failed"]


def test_parts_of_a_table_that_is_not_there_and_keys_that_need_one_another():
    from fedtune.comparison.grid import families

    base = fedtune.load_scenario("quickstart")
    found = families(base, {"run.early_stopping.patience": [1, 2]})
    assert [f.scenario.run.early_stopping.patience for f in found] == [1, 2]
    axes = {"local.optimizer": ["sgd", "adamw"], "local.momentum": [0.0, 0.9]}
    assert [f.over for f in families(base, axes) if f.scenario is None] == [
        {"local.optimizer": "adamw", "local.momentum": 0.9}
    ]


def test_a_name_of_a_cell_does_not_depend_on_keys_that_keep_their_defaults():
    from fedtune.comparison.cells import Cell

    base = fedtune.load_scenario("quickstart")
    spelled = fedtune.load_scenario("quickstart", {"faults.on_error": "raise"})
    other = fedtune.load_scenario("quickstart", {"faults.on_error": "skip"})
    assert Cell("", base).digest == Cell("", spelled).digest != Cell("", other).digest
