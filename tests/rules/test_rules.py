"""Every rule: invariants, reductions, robustness by enumeration, and NumPy restatements."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fedtune.errors import RunError
from fedtune.rules import base, make_rule
from fedtune.rules.base import Updates, centred_of, distances_of
from fedtune.rules.clipping import CenteredClipping
from fedtune.rules.coordinates import MeaMed, Median, Phocas, TrimmedMean, meamed
from fedtune.rules.flag import Flag, factor_of
from fedtune.rules.geometric import GeometricMedian
from fedtune.rules.krum import Bulyan, Krum, MultiKrum
from fedtune.rules.mean import Mean, NormalizedMean
from fedtune.rules.pre import ARC, NNM, Bucketing, Clip
from fedtune.rules.subsets import MDA, DnC
from fedtune.rules.trust import FLTrust
from tests.rules.kit import updates, worst_ratio

ROBUST = {
    "krum": Krum, "multi-krum": MultiKrum, "bulyan": Bulyan, "trimmed-mean": TrimmedMean,
    "meamed": MeaMed, "phocas": Phocas, "mda": MDA, "dnc": DnC,
}  # fmt: skip
FREE = {
    "mean": Mean, "median": Median, "geometric-median": GeometricMedian,
    "centered-clipping": CenteredClipping,
}  # fmt: skip
ALL = {**{n: (lambda c=c: c(f=2)) for n, c in ROBUST.items()}, **FREE}
COORDINATES = ("median", "trimmed-mean", "meamed", "phocas", "bulyan")
BYZANTINE = st.integers(0, 2)
SHAPES = st.tuples(st.integers(7, 10), st.integers(1, 6), st.integers(0, 10_000))


def drawn(shape, scale=1.0):
    n, d, seed = shape
    return np.random.default_rng(seed).normal(scale=scale, size=(n, d))


def run(rule, rows, **changes):
    return rule(updates(rows, **changes)).update.numpy()


@pytest.mark.parametrize("name", ALL)
@given(SHAPES)
@settings(max_examples=20, deadline=None)
def test_identical_updates_give_that_update(name, shape):
    row = drawn(shape)[:1]
    found = run(ALL[name](), np.repeat(row, shape[0], 0))
    np.testing.assert_allclose(found, row[0], atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"centered-clipping"}))
@given(SHAPES)
@settings(max_examples=20, deadline=None)
def test_translation_moves_the_result_along(name, shape):
    rows, shift = drawn(shape), np.arange(shape[1]) * 3.0 + 1.0
    np.testing.assert_allclose(
        run(ALL[name](), rows + shift), run(ALL[name](), rows) + shift, atol=1e-6
    )


@pytest.mark.parametrize("name", ALL)
@given(SHAPES)
@settings(max_examples=20, deadline=None)
def test_the_order_of_clients_does_not_matter(name, shape):
    rows = drawn(shape)
    order = np.random.default_rng(shape[2]).permutation(len(rows))
    np.testing.assert_allclose(run(ALL[name](), rows[order]), run(ALL[name](), rows), atol=1e-7)


@pytest.mark.parametrize(
    "name", ["multi-krum", "bulyan", "trimmed-mean", "meamed", "phocas", "mda", "dnc"]
)
@given(SHAPES)
@settings(max_examples=20, deadline=None)
def test_without_byzantine_clients_it_is_the_mean(name, shape):
    rows = drawn(shape)
    np.testing.assert_allclose(run(ROBUST[name](f=0), rows), rows.mean(0), atol=1e-9)
    mixed = NNM(f=0)(updates(rows))
    np.testing.assert_allclose(run(ROBUST[name](f=0), mixed.rows.numpy()), rows.mean(0), atol=1e-9)


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "meamed", "phocas", "bulyan"])
@given(SHAPES)
def test_a_coordinate_stays_within_what_was_sent(name, shape):
    rows = drawn(shape)
    found = run(ALL[name](), rows)
    assert (found >= rows.min(0) - 1e-12).all()
    assert (found <= rows.max(0) + 1e-12).all()


def adversarial(shape, f):
    """Honest updates, and f that are far away, near by, or many at one point."""
    _, d, seed = shape
    rows = drawn(shape)
    scale = [1.5, 10.0, 1e4][seed % 3]
    rows[:f] = rows[f:].mean(0) + scale * np.ones(d)
    return rows


KAPPA = {
    "krum": lambda r: 6 * (1 + r),
    "median": lambda r: 4 * (1 + r) ** 2,
    "geometric-median": lambda r: 4 * (1 + r) ** 2,
    "trimmed-mean": lambda r: 6 * r * (1 + r),
}


@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "nnm"])
@pytest.mark.parametrize("name", KAPPA)
@given(SHAPES, BYZANTINE, st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_robustness_inequality_holds_for_every_subset(name, mixed, shape, f, attacked):
    """‖F - mean_T‖² ≤ κ·mean_T‖x - mean_T‖², by enumeration (section 6 of the method card)."""
    n = shape[0]
    rows = adversarial(shape, f) if attacked else drawn(shape)
    ratio = f / (n - 2 * f)
    kappa = KAPPA[name](ratio)
    made = ALL[name]() if name in ("median", "geometric-median") else ROBUST[name](f=f)
    given_ = updates(rows)
    if mixed:
        kappa = 8 * f / (n - f) * (kappa + 1)
        given_ = NNM(f=f)(given_)
    found = made(given_).update.numpy()
    assert worst_ratio(rows, found, f) <= kappa * (1 + 1e-6) + 1e-9


def test_the_mean_breaks_that_inequality():
    rows = adversarial((10, 3, 2), 2)
    assert worst_ratio(rows, rows.mean(0), 2) > 4 * (1 + 2 / 6) ** 2


@given(SHAPES, BYZANTINE)
@settings(max_examples=30, deadline=None)
def test_krum_and_bulyan_restated_in_numpy(shape, f):
    rows = drawn(shape)
    n = len(rows)

    def order(members):
        found = []
        for i in members:
            apart = sorted(((rows[i] - rows[j]) ** 2).sum() for j in members if j != i)
            near = apart[: max(1, len(members) - f - 2)]
            found.append((sum(near), sum(apart), i))
        return [i for *_, i in sorted(found)]

    everybody = order(range(n))
    np.testing.assert_allclose(run(Krum(f), rows), rows[everybody[0]])
    np.testing.assert_allclose(run(MultiKrum(f), rows), rows[everybody[: n - f]].mean(0))
    f = min(f, (n - 3) // 4)
    left, chosen = list(range(n)), []
    for _ in range(n - 2 * f):
        chosen.append(order(left)[0])
        left.remove(chosen[-1])
    picked = rows[chosen]
    middle = np.median(picked, axis=0)
    expected = [
        sorted(picked[:, c], key=lambda v, c=c: abs(v - middle[c]))[: n - 4 * f]
        for c in range(shape[1])
    ]
    np.testing.assert_allclose(run(Bulyan(f), rows), np.mean(expected, axis=1), atol=1e-12)


@given(SHAPES)
@settings(max_examples=15, deadline=None)
def test_the_geometric_median_minimises_the_sum_of_distances(shape):
    rows = drawn(shape)

    def cost(z):
        return np.linalg.norm(rows - z, axis=1).sum()

    found = run(GeometricMedian(), rows)
    other = minimize(cost, rows.mean(0), method="Nelder-Mead",
                     options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 20_000})  # fmt: skip
    assert cost(found) <= other.fun * (1 + 1e-7)
    result = GeometricMedian()(updates(rows))
    np.testing.assert_allclose(result.coefficients.numpy() @ rows, found, atol=1e-9)


@given(SHAPES, BYZANTINE)
@settings(max_examples=30, deadline=None)
def test_mda_has_the_least_diameter_of_all_subsets(shape, f):
    rows = drawn(shape)
    n = len(rows)

    def diameter(members):
        return max(((rows[i] - rows[j]) ** 2).sum() for i, j in itertools.combinations(members, 2))

    best = min(map(diameter, itertools.combinations(range(n), n - f)))
    kept = MDA(f)(updates(rows)).coefficients.nonzero().ravel().tolist()
    assert len(kept) == n - f
    assert diameter(kept) == pytest.approx(best)


def test_mda_says_when_it_would_never_end():
    with pytest.raises(RunError, match="at most f = 16"):
        MDA(20)(updates(np.eye(50)))


def test_dnc_drops_a_planted_direction():
    rows = np.random.default_rng(0).normal(size=(10, 500))
    rows[:2] += 5.0
    kept = DnC(f=2)(updates(rows)).coefficients
    assert kept[:2].tolist() == [0.0, 0.0]
    assert torch.allclose(kept[2:], torch.full((8,), 1 / 8, dtype=torch.float64))


def test_centered_clipping_begins_at_its_last_aggregate_and_is_restored():
    rows = drawn((7, 4, 3))
    rule = CenteredClipping(tau=0.5)
    first = run(rule, rows)
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(first, (rows * np.minimum(1, 0.5 / norms)[:, None]).mean(0))
    other = CenteredClipping(tau=0.5)
    other.load_state_dict(rule.state_dict())
    second = run(rule, rows)
    apart = rows - first
    clipped = apart * np.minimum(1, 0.5 / np.linalg.norm(apart, axis=1))[:, None]
    np.testing.assert_allclose(second, first + clipped.mean(0))
    np.testing.assert_array_equal(run(other, rows), second)


def test_fltrust_ignores_what_points_away_and_levels_lengths():
    root = np.asarray([1.0, 0.0])
    rows = np.asarray([[3.0, 0.0], [0.0, 5.0], [-9.0, 0.0], [1.0, 1.0]])
    found = FLTrust()(updates(rows, trusted=torch.from_numpy(root)))
    cosine = np.asarray([1.0, 0.0, 0.0, 0.5**0.5])
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    np.testing.assert_allclose(found.update, (cosine @ unit) / cosine.sum())
    with pytest.raises(RunError, match="server's own data"):
        FLTrust()(updates(rows))


@given(SHAPES)
@settings(max_examples=20, deadline=None)
def test_flag_in_gram_form_is_the_projection_by_singular_vectors(shape):
    rows = drawn((*shape[:1], 12, shape[2]))
    m = 3
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    left = np.linalg.svd(unit.T, full_matrices=False)[0][:, :m]
    expected = left @ left.T @ unit.sum(0) / len(rows) * np.median(np.linalg.norm(rows, axis=1))
    length = torch.from_numpy(np.linalg.norm(rows, axis=1)).median() / np.median(
        np.linalg.norm(rows, axis=1)
    )
    found = run(Flag(m=m, iterations=1), rows)
    np.testing.assert_allclose(found, expected * float(length), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("regularization", [0.0, 2.0])
@given(SHAPES)
@settings(max_examples=20, deadline=None)
def test_flag_does_not_get_worse_and_knows_rotations_lengths_and_spans(regularization, shape):
    rows = drawn((*shape[:1], 15, shape[2]))
    rule = Flag(m=2, regularization=regularization, iterations=8)
    found = rule(updates(rows))
    assert found.notes["objective"] <= found.notes["objective_first"] * (1 + 1e-6)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(15, 15)))[0]
    np.testing.assert_allclose(run(rule, rows @ turn), found.update @ turn, atol=1e-6)
    whole = run(Flag(m=len(rows)), rows)
    np.testing.assert_allclose(whole, run(NormalizedMean(), rows), atol=1e-6)
    stretched = rows * np.linspace(0.5, 2.0, len(rows))[:, None]
    one, other = run(rule, stretched), found.update.numpy()
    np.testing.assert_allclose(one / np.linalg.norm(one), other / np.linalg.norm(other), atol=1e-6)


def test_flag_alone_keeps_the_direction_of_identical_updates():
    row = np.asarray([[1.0, 2.0, -2.0]])
    np.testing.assert_allclose(run(Flag(m=1), np.repeat(row, 5, 0)), row[0], atol=1e-9)
    np.testing.assert_array_equal(run(Flag(), np.zeros((4, 3))), np.zeros(3))


@given(SHAPES, BYZANTINE)
def test_pre_aggregation_restated_in_numpy(shape, f):
    rows = drawn(shape)
    n = len(rows)
    for i, row in enumerate(NNM(f)(updates(rows)).rows.numpy()):
        near = np.argsort(((rows - rows[i]) ** 2).sum(1), kind="stable")[: n - f]
        np.testing.assert_allclose(row, rows[near].mean(0), atol=1e-12)
    norms = np.linalg.norm(rows, axis=1)
    clipped = Clip(norm=0.7)(updates(rows)).rows.numpy()
    np.testing.assert_allclose(clipped, rows * np.minimum(1, 0.7 / norms)[:, None], atol=1e-12)
    cut = np.sort(norms)[::-1][int(2 * f * (n - f) / n)]
    found = ARC(f)(updates(rows)).rows.numpy()
    np.testing.assert_allclose(found, rows * np.minimum(1, cut / norms)[:, None], atol=1e-12)


@given(SHAPES)
def test_buckets_are_means_that_hold_every_row_once(shape):
    rows = drawn(shape)
    made = Bucketing(s=2)(updates(rows, seed=3))
    assert len(made) == -(-len(rows) // 2)
    assert torch.allclose(made.mixing.sum(1), torch.ones(len(made), dtype=torch.float64))
    assert ((made.mixing > 0).sum(0) == 1).all()
    again = Bucketing(s=2)(updates(rows, seed=3, server_round=2))
    assert len(rows) < 8 or not torch.equal(made.mixing, again.mixing)


@given(SHAPES, BYZANTINE)
@settings(max_examples=20, deadline=None)
def test_mixing_keeps_gram_rows_and_coefficients_in_step(shape, f):
    made = Bucketing(s=2)(NNM(f)(updates(drawn(shape))))
    assert torch.allclose(made.gram, made.rows @ made.rows.T, atol=1e-9)
    found = MultiKrum(1)(made)
    assert torch.allclose(found.coefficients @ made.replies, found.update)
    assert torch.allclose(found.coefficients.sum(), torch.ones((), dtype=torch.float64))


def test_distances_of_small_updates_in_float32_are_right():
    """Differences of 1e-5 between float32 updates: a float32 Gram matrix would drown them."""
    random = np.random.default_rng(0)
    rows = (random.normal(size=50_000) + 1e-5 * random.normal(size=(6, 50_000))).astype(np.float32)
    exact = ((rows[:, None].astype(np.float64) - rows[None].astype(np.float64)) ** 2).sum(-1)
    found = distances_of(centred_of(torch.from_numpy(rows))).numpy()
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-12)
    single = torch.from_numpy(rows @ rows.T)
    assert np.abs(distances_of(single).numpy() - exact).max() > exact.max()


def test_the_factor_of_a_gram_matrix_of_few_dimensions():
    rows = drawn((9, 3, 5))
    factor = factor_of(torch.from_numpy(rows @ rows.T))
    assert factor.shape == (3, 9)
    np.testing.assert_allclose(factor.T @ factor, rows @ rows.T, atol=1e-9)


def test_one_reply_is_given_back_by_every_rule():
    row = np.asarray([[1.0, -2.0, 3.0]])
    for name, make in ALL.items():
        np.testing.assert_allclose(run(make(), row), row[0], atol=1e-12, err_msg=name)
    assert isinstance(updates(row), Updates)


@given(st.integers(0, 2**31), st.integers(1, 9))
def test_the_nearest_values_are_those_of_a_search_over_all_subsets_of_neighbours(seed, count):
    """Against sorting by distance; values are drawn without ties."""
    draw = np.random.default_rng(seed)
    rows = torch.from_numpy(draw.normal(size=(9, 6)))
    found = meamed(rows, count)
    for column, value in zip(rows.numpy().T, found, strict=True):
        order = np.argsort(np.abs(column - np.median(column)))
        assert float(value) == pytest.approx(column[order[:count]].mean(), abs=1e-12)
    assert torch.equal(found, meamed(rows.flip(0), count))


def test_columns_in_blocks_are_columns_at_once(monkeypatch):
    rows = torch.randn(7, 1000, dtype=torch.float64)
    whole = {name: make_rule(name, 1)(updates(rows)).update for name in COORDINATES}
    monkeypatch.setitem(base.BLOCK_BYTES, "cpu", 8 * 7 * 33)
    for name in COORDINATES:
        again = make_rule(name, 1)(updates(rows)).update
        assert torch.allclose(again, whole[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [*ALL.values(), Flag, NormalizedMean])
def test_equal_updates_give_equal_bits(rule):
    """LAPACK's least squares, for one, does not: runs would differ that must not."""
    rows = torch.from_numpy(np.random.default_rng(3).normal(size=(9, 30)))
    first = rule()(updates(rows)).update
    for _ in range(20):
        assert torch.equal(rule()(updates(rows)).update, first)
