"""Updates of zero, coincident updates, too few replies for f: against definitions in 60 digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.rules import PRE, RULES, Updates, make_pre, make_rule
from fedtune.rules.flag import Flag
from fedtune.rules.gram import distances_between
from fedtune.rules.mean import NormalizedMean
from tests.kits import rules_reference as reference
from tests.rules.kit import updates

BEFORE = [(), *((name,) for name in PRE)]


def aggregated(rule, pre, rows, f, trusted=None):
    made = updates(rows) if isinstance(rows, np.ndarray) else rows
    made = Updates(made.replies, made.weights, made.clients, trusted=trusted)
    for name in pre:
        made = make_pre(name, f)(made)
    return make_rule(rule, f)(made)


def expected(rule, pre, rows, f, trusted):
    given_ = reference.Round(reference.exact(rows), f, trusted=reference.exact([trusted])[0])
    return np.asarray(reference.aggregate(rule, pre, given_), dtype=np.float64)


def test_every_rule_and_pre_aggregator_has_a_definition():
    """A new one is added to tests/kits/rules_reference.py, whose property it then has."""
    for kind, names, known in (("rule", RULES, reference.RULES), ("pre", PRE, reference.PRE)):
        missing = sorted(set(names) - set(known))
        assert not missing, f"{kind}: {missing} not defined in tests/kits/rules_reference.py"
    assert set(reference.NO_BREAKDOWN) <= set(RULES)


def test_what_has_no_definition_is_named():
    with pytest.raises(AssertionError, match=r"rule 'newest' has no definition in tests/kits"):
        reference.aggregate("newest", (), reference.Round([]))


@pytest.mark.parametrize("pre", BEFORE, ids=lambda names: "+".join(names) or "alone")
@pytest.mark.parametrize("rule", RULES)
def test_without_attackers_it_is_its_definition(rule, pre):
    draw = np.random.default_rng(5)
    for n, f in ((7, 1), (8, 0), (11, 2)):
        rows, root = draw.normal(size=(n, 8)), draw.normal(size=8)
        found = aggregated(rule, pre, rows, f, torch.from_numpy(root)).update
        np.testing.assert_allclose(found, expected(rule, pre, rows, f, root), atol=1e-5)


@pytest.mark.parametrize("length", [0.0, 1e-42], ids=["zero", "denormal"])
@pytest.mark.parametrize("pre", BEFORE, ids=lambda names: "+".join(names) or "alone")
@pytest.mark.parametrize("rule", sorted(set(RULES) - {"geometric-median"}))
def test_an_update_of_nothing_is_what_its_definition_says(rule, pre, length):
    """Its square is rounding of either sign if it is a difference of larger numbers."""
    draw = np.random.default_rng(6)
    for n, zeros in ((5, 1), (9, 2), (9, 4), (7, 6)):
        rows = (1.0 + draw.normal(size=(n, 7))).astype(np.float32)
        rows[:zeros] = length
        root, f = rows.mean(0, dtype=np.float64), reference.most_malicious(rule, n, pre)
        found = aggregated(rule, pre, rows, f, torch.from_numpy(root))
        wanted = expected(rule, pre, rows, f, root)
        assert torch.isfinite(found.update).all()
        np.testing.assert_allclose(found.update, wanted, atol=1e-5, err_msg=f"{n} {zeros}")


@pytest.mark.parametrize("pre", BEFORE, ids=lambda names: "+".join(names) or "alone")
@pytest.mark.parametrize("rule", RULES)
def test_of_nothing_but_zeros_comes_zero(rule, pre):
    for n in (1, 2, 3, 8):
        found = aggregated(rule, pre, np.zeros((n, 4)), 1, torch.zeros(4, dtype=torch.float64))
        assert found.update.tolist() == [0.0] * 4
    found = aggregated(rule, pre, np.zeros((5, 4)), 1, torch.ones(4, dtype=torch.float64))
    assert found.update.tolist() == [0.0] * 4


def test_fltrust_trusts_nobody_where_the_servers_own_update_is_zero():
    rows = np.full((4, 3), 1e-30)
    found = aggregated("fltrust", (), rows, 0, torch.zeros(3, dtype=torch.float64))
    assert found.update.tolist() == [0.0] * 3


def test_flag_is_the_same_with_and_without_an_update_of_zero():
    rows = np.random.default_rng(0).normal(size=(7, 12))
    whole = np.concatenate([rows, np.zeros((2, 12))])
    torch.testing.assert_close(Flag()(updates(whole)).update, Flag()(updates(rows)).update)


def test_a_majority_of_zeros_is_not_outvoted_by_one_that_is_long():
    rows = np.zeros((9, 5))
    rows[0], rows[1:4] = 1e30, 1.0
    for rule in (Flag(), NormalizedMean()):
        assert rule(updates(rows)).update.tolist() == [0.0] * 5


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_the_geometric_median_has_the_least_sum_of_distances_at_and_near_updates(seed, copies, d):
    """Copies of a row pull it towards them: onto it, or next to it, where an iteration is slow."""
    draw = np.random.default_rng(seed)
    rows = np.concatenate([draw.normal(size=(9 - copies, d)), np.zeros((copies, d))])
    rows[: 2 - seed % 2] *= 10.0 ** draw.integers(0, 12)
    exact = reference.exact(rows)
    best = reference.geometric_median(reference.Round(exact))
    (found,) = reference.exact([aggregated("geometric-median", (), rows, 0).update.tolist()])
    assert reference.cost(exact, found) - reference.cost(exact, best) < 1e-5


ROOM = {
    "krum": 2, "multi-krum": 2, "bulyan": 1, "trimmed-mean": 3, "phocas": 3, "mda": 3, "dnc": 3,
}  # fmt: skip


@pytest.mark.parametrize(("rule", "room"), ROOM.items())
def test_where_replies_are_too_few_for_f_what_is_used_is_said(rule, room):
    rows = np.random.default_rng(1).normal(size=(8, 5))
    for f in range(8):
        assert make_rule(rule, f)(updates(rows)).notes["f_used"] == min(f, room)


@pytest.mark.parametrize("pre", ["nnm", "arc"])
def test_pre_aggregation_says_it_too_and_what_comes_after_keeps_it(pre):
    rows = np.random.default_rng(1).normal(size=(8, 5))
    for f in range(8):
        made = make_pre("bucketing", f)(make_pre(pre, f)(updates(rows)))
        assert made.notes == {f"{pre}_f_used": min(f, 3)}


def test_multi_krum_averages_no_more_replies_than_f_leaves_where_f_is_lowered():
    """At n = 2f + 1 scores are for f - 1, and f that collude are still left out."""
    rows = np.random.default_rng(2).normal(size=(9, 5))
    rows[:4] = 1e6
    found = make_rule("multi-krum", 4)(updates(rows))
    assert found.notes["f_used"] == 3
    np.testing.assert_allclose(found.update, rows[4:].mean(0), atol=1e-9)


def test_the_mean_after_nnm_has_no_bound():
    rows = np.random.default_rng(3).normal(size=(10, 5))
    moved = []
    for radius in (1e3, 1e6, 1e9):
        rows[0] = radius
        found = aggregated("mean", ("nnm",), rows, 2).update
        moved.append(float(found.norm()) / radius)
    assert min(moved) == pytest.approx(max(moved), rel=1e-2)
    assert min(moved) > 1e-2


def test_distances_of_colluding_rows_do_not_drown_in_their_length():
    draw = np.random.default_rng(4)
    rows = draw.normal(size=(9, 50))
    rows[:3] += 1e12
    exact = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    found = updates(rows)
    np.testing.assert_allclose(found.distances, exact, rtol=1e-9)
    assert found.distances is not found.distances  # a rule may write into its own
    np.testing.assert_array_equal(distances_between(found.blocks, found.centred), found.distances)
