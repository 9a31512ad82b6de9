"""Length: grouping changes which rows meet in a batch, never which rows are seen or counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.cohort.engine import EVALUATION_POSITIONS, cohorts, evaluation_batches
from fedtune.cohort.plan import plan_work
from fedtune.scenario.local import LocalSection
from tests.cohort import kit

GROUPED = LocalSection(epochs=2, batch_size=4, group_by_length=True)


def padded(work, widths) -> int:
    return sum(len(b) * int(widths[b].max()) for step in work.steps for b in step)


@given(st.integers(1, 40), st.integers(0, 5), st.integers(1, 9))
def test_grouping_sees_every_row_once_an_epoch(size, seed, batch):
    rows = np.arange(100, 100 + size)
    widths = np.random.default_rng(seed).integers(1, 50, size)
    local = LocalSection(epochs=2, batch_size=batch, group_by_length=True)
    work = plan_work(3, 1, rows, {}, local, seed, widths)
    seen = np.concatenate([b for step in work.steps for b in step])
    assert sorted(seen) == sorted([*rows, *rows])
    assert work.positions == max(
        len(b) * widths[b - 100].max() for step in work.steps for b in step
    )


def test_grouping_pads_less_and_clients_meet_long_batches_together():
    draw = np.random.default_rng(0)
    widths = draw.integers(1, 60, 400)
    plain = LocalSection(epochs=1, batch_size=4)
    works = {
        local.group_by_length: [
            plan_work(c, 1, np.arange(c * 40, c * 40 + 40), {}, local, 0, widths[c * 40 :][:40])
            for c in range(10)
        ]
        for local in (plain, GROUPED)
    }
    alone = {g: sum(padded(w, widths) for w in ws) for g, ws in works.items()}
    assert alone[True] / 2 < 0.75 * alone[False]  # two epochs against one
    together = {
        g: sum(
            10 * max(int(widths[w.steps[s][0]].max()) for w in ws) for s in range(len(ws[0].steps))
        )
        for g, ws in works.items()
    }
    assert together[True] / 2 < 0.8 * together[False]


def test_a_client_plans_the_same_whoever_else_takes_part():
    widths = np.arange(20) // 5 + 1
    a, b = (plan_work(5, 2, np.arange(20), {}, GROUPED, 7, widths) for _ in range(2))
    assert all(np.array_equal(x[0], y[0]) for x, y in zip(a.steps, b.steps, strict=True))
    other = plan_work(6, 2, np.arange(20), {}, GROUPED, 7, widths)
    assert any(not np.array_equal(x[0], y[0]) for x, y in zip(a.steps, other.steps, strict=True))


def test_like_widths_train_together():
    wide = [plan_work(c, 1, np.arange(8), {}, LocalSection(batch_size=8), 0, np.full(8, w))
            for c, w in enumerate([5, 50, 6, 51])]  # fmt: skip
    groups = [{work.client for work in group} for group in cohorts(wide, 2)]
    assert groups == [{1, 3}, {0, 2}]


@given(st.lists(st.integers(1, 6000), min_size=1, max_size=300))
def test_evaluation_batches_hold_every_row_once_within_bounds(widths):
    widths = np.asarray(widths)
    rows = np.arange(len(widths)) + 7
    batches = list(evaluation_batches(rows, widths))
    assert sorted(np.concatenate(batches)) == list(rows)
    for batch in batches:
        wide = int(widths[batch - 7].max())
        assert len(batch) == 1 or len(batch) * wide <= EVALUATION_POSITIONS


@pytest.mark.parametrize("model", [kit.bert, kit.gpt2])
def test_evaluation_does_not_depend_on_how_rows_are_batched(model, monkeypatch):
    from fedtune.cohort import engine as engines
    from fedtune.cohort.engine import Engine, Resolved
    from fedtune.cohort.together import CohortBackend

    setting = kit.setting(model)
    made = Engine(CohortBackend(setting), setting, Resolved("cohort", "cpu", 1))
    rows = np.arange(len(setting.data))
    whole = made.evaluate(kit.stirred(setting), setting.data, rows)
    monkeypatch.setattr(engines, "EVALUATION_POSITIONS", 11)
    small = made.evaluate(kit.stirred(setting), setting.data, rows)
    assert small == pytest.approx(whole, rel=1e-12)
