"""A client's plan: every example once an epoch, exact step counts, schedules."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.cohort.plan import out_of_patience, plan_work, step_rates
from fedtune.scenario.local import EarlyStopping, LocalSection


def plan(rows, local, client=0, server_round=1, seed=0):
    return plan_work(client, server_round, np.asarray(rows), {}, local, seed)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))
def test_epochs_take_every_example_once_each(size, batch, epochs, accumulation):
    local = LocalSection(epochs=epochs, batch_size=batch, accumulation=accumulation)
    work = plan(range(100, 100 + size), local)
    taken = np.concatenate([b for step in work.steps for b in step])
    assert sorted(taken) == sorted(list(range(100, 100 + size)) * epochs)
    per_epoch = math.ceil(math.ceil(size / batch) / accumulation)
    assert len(work.steps) == per_epoch * epochs
    assert work.epoch_ends == tuple(per_epoch * (e + 1) for e in range(epochs))


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 12))
def test_steps_are_exact_and_go_round_the_data(size, batch, steps):
    work = plan(range(size), LocalSection(steps=steps, batch_size=batch))
    taken = np.concatenate([b for step in work.steps for b in step])
    assert len(work.steps) == steps
    counts = np.bincount(taken, minlength=size)
    assert counts.max() - counts.min() <= 1


def test_batches_depend_on_seed_round_and_client_only():
    local = LocalSection(epochs=1, batch_size=4)
    first = plan(range(30), local, client=3, server_round=2)
    again = plan(range(30), local, client=3, server_round=2)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first.steps, again.steps, strict=True))
    for other in ({"client": 4}, {"server_round": 3}, {"seed": 1}):
        changed = plan(range(30), local, **{"client": 3, "server_round": 2, **other})
        assert not np.array_equal(first.steps[0][0], changed.steps[0][0])
        assert first.dropout_key != changed.dropout_key


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_start_full_and_fall(schedule):
    local = LocalSection(lr=0.5, schedule=schedule, warmup=2)
    rates = step_rates(local, 10, 1, 5)
    assert rates[:3] == pytest.approx([0.25, 0.5, 0.5])
    assert all(a > b for a, b in pairwise(rates[2:]))
    assert rates[-1] > 0


def test_the_rate_falls_over_rounds():
    local = LocalSection(lr=1.0, round_schedule="exponential", round_decay=0.5)
    assert [step_rates(local, 1, r, 4)[0] for r in (1, 2, 3)] == [1.0, 0.5, 0.25]
    linear = LocalSection(lr=1.0, round_schedule="linear")
    assert [step_rates(linear, 1, r, 4)[0] for r in (1, 2, 4)] == [1.0, 0.75, 0.25]


@given(st.sampled_from(["linear", "cosine"]), st.integers(1, 60), st.integers(0, 200))
def test_beyond_its_last_round_a_schedule_keeps_the_last_rate(kind, rounds, more):
    """So a run that is lengthened goes on training, and its first rounds stay what they were."""
    local = LocalSection(lr=0.3, round_schedule=kind)
    rates = [step_rates(local, 1, r, rounds)[0] for r in range(1, rounds + more + 1)]
    done = np.arange(rounds) / rounds
    falls = 1.0 - done if kind == "linear" else 0.5 * (1.0 + np.cos(np.pi * done))
    assert rates[:rounds] == pytest.approx((0.3 * falls).tolist(), rel=1e-12)
    assert set(rates[rounds:]) <= {rates[rounds - 1]}
    assert rates[-1] > 0


def test_exponential_decay_has_no_last_round():
    local = LocalSection(lr=1.0, round_schedule="exponential", round_decay=0.5)
    assert [step_rates(local, 1, r, 2)[0] for r in (1, 2, 5)] == [1.0, 0.5, 2.0**-4]


def test_patience_counts_looks_without_improvement():
    rule = EarlyStopping(patience=2, min_delta=0.1)
    assert not out_of_patience([1.0, 0.95], rule)
    assert out_of_patience([1.0, 0.95, 0.92], rule)
    assert not out_of_patience([1.0, 0.95, 0.85], rule)
