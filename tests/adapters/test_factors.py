"""Mathematics on factors: identities on products, never on factors; non-square layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.adapters.factors import (
    aggregation_error,
    exact_factors,
    first_step,
    frame_of,
    frame_of_sketch,
    orthonormal,
    range_of,
    refactored,
    residual_of,
    truncated,
)

SHAPES = st.tuples(st.integers(4, 9), st.integers(4, 9), st.integers(1, 4), st.integers(0, 10_000))


def draws(seed, *shape, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def gap(a, b):
    return float((a - b).norm() / b.norm())


@given(SHAPES)
@settings(max_examples=40, deadline=None)
def test_refactoring_keeps_the_product_and_makes_a_orthonormal(shape):
    rows, columns, rank, seed = shape
    b, a = (
        draws(seed, rows, rank, dtype=torch.float32),
        draws(seed + 1, rank, columns, dtype=torch.float32),
    )
    new_b, new_a = refactored(b, a)
    assert gap(new_b @ new_a, b @ a) <= 1e-5
    torch.testing.assert_close(new_a @ new_a.T, torch.eye(rank), atol=1e-5, rtol=0)
    values = torch.linalg.svdvals((b @ a).double())[:rank]
    torch.testing.assert_close(new_b.norm(dim=0).double(), values, atol=1e-4, rtol=1e-4)


def test_refactoring_nothing_leaves_the_factors_as_they_are():
    b, a = torch.zeros(6, 3), draws(0, 3, 5, dtype=torch.float32)
    new_b, new_a = refactored(b, a)
    assert new_b is b
    assert new_a is a


def test_a_product_of_lower_rank_keeps_an_orthonormal_a():
    b = draws(0, 6, 1) @ draws(1, 1, 3)
    new_b, new_a = refactored(b, draws(2, 3, 5))
    assert gap(new_b @ new_a, b @ draws(2, 3, 5)) <= 1e-12
    torch.testing.assert_close(new_a @ new_a.T, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4)])
def test_the_shorter_side_is_orthonormal(shape):
    q = orthonormal(draws(0, *shape))
    small = q.T @ q if shape[0] >= shape[1] else q @ q.T
    torch.testing.assert_close(small, torch.eye(min(shape), dtype=torch.float64))


@given(SHAPES)
@settings(max_examples=30, deadline=None)
def test_a_frame_is_the_best_approximation_of_the_first_step_by_its_rank(shape):
    rows, columns, rank, seed = shape
    gradient = draws(seed, rows, columns)
    step = first_step(gradient, 0.01)
    np.testing.assert_array_equal(step.numpy(), -0.01 * np.sign(gradient.numpy()))
    b, r, a = frame_of(step, rank)
    eye = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(b.T @ b, eye)
    torch.testing.assert_close(a @ a.T, eye)
    left_out = np.linalg.svd(step.numpy(), compute_uv=False)[rank:]
    np.testing.assert_allclose(
        float((b @ r @ a - step).norm()), np.linalg.norm(left_out), atol=1e-12
    )


def test_the_induced_gradient_is_the_projection_on_the_frame():
    """With s = 1: B·(∂L/∂R)·A = BBᵀ g AᵀA, so there is no alpha to tune."""
    gradient = draws(0, 6, 5)
    b, _, a = frame_of(gradient, 2)
    r = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    ((b @ r @ a) * gradient).sum().backward()
    torch.testing.assert_close(b @ r.grad @ a, b @ b.T @ gradient @ a.T @ a)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_a_sketch_of_a_gradient_of_low_rank_finds_it_whole(shape):
    gradient = draws(0, shape[0], 2) @ draws(1, 2, shape[1])
    basis = range_of(gradient @ draws(2, shape[1], 4))
    b, r, a = frame_of_sketch(basis, basis.T @ gradient, 2, 0.01)
    expected = -gradient / gradient.norm() * 0.01 * (shape[0] * shape[1]) ** 0.5
    assert gap(b @ r @ a, expected) <= 1e-10
    torch.testing.assert_close(b.T @ b, torch.eye(2, dtype=torch.float64))
    assert abs(float((b @ r @ a).norm()) - float(first_step(gradient, 0.01).norm())) <= 1e-12


def test_a_sketch_of_any_gradient_is_nearly_the_best_of_its_rank():
    values = 0.7 ** np.arange(40)
    u, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 40)))
    v, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(50, 40)))
    gradient = torch.from_numpy((u * values) @ v.T)
    basis = range_of(gradient @ draws(2, 50, 16))
    b, _, a = frame_of_sketch(basis, basis.T @ gradient, 8, 1.0)
    inside = float((b.T @ gradient @ a.T).norm())
    assert inside >= 0.99 * float(np.linalg.norm(values[:8]))


CLIENTS = st.tuples(st.integers(1, 5), st.integers(0, 10_000))


@given(CLIENTS)
@settings(max_examples=40, deadline=None)
def test_the_residual_is_what_averaging_the_factors_misses(shape):
    """W' + B̄Ā = W + Σ p_k B_k A_k, with unequal weights, on a layer that is not square."""
    clients, seed = shape
    bs = [draws(seed + k, 7, 2) for k in range(clients)]
    as_ = [draws(seed + 100 + k, 2, 5) for k in range(clients)]
    p = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(clients)))
    u, v = residual_of(bs, as_, p)
    assert u.shape == (7, 2 * (clients - 1))
    assert v.shape == (2 * (clients - 1), 5)
    products = sum(w * b @ a for w, b, a in zip(p, bs, as_, strict=True))
    mean_b = sum(w * b for w, b in zip(p, bs, strict=True))
    mean_a = sum(w * a for w, a in zip(p, as_, strict=True))
    torch.testing.assert_close(u @ v, products - mean_b @ mean_a, atol=1e-10, rtol=1e-10)


def test_the_published_transposed_residual_is_worse_than_none():
    """Negative control: on a square layer the transposed residual passes silently."""
    bs, as_ = [draws(k, 6, 2) for k in range(3)], [draws(9 + k, 2, 6) for k in range(3)]
    p = torch.full((3,), 1 / 3, dtype=torch.float64)
    u, v = residual_of(bs, as_, p)
    truth = sum(b @ a for b, a in zip(bs, as_, strict=True)) / 3
    plain = (sum(bs) / 3) @ (sum(as_) / 3)
    assert gap(plain + u @ v, truth) <= 1e-12
    assert gap(plain + (u @ v).T, truth) > gap(plain, truth) > 0.1


@given(SHAPES)
@settings(max_examples=30, deadline=None)
def test_truncation_leaves_out_the_smallest_singular_values_and_says_how_much(shape):
    rows, columns, rank, seed = shape
    u, v = draws(seed, rows, 4), draws(seed + 1, 4, columns)
    short_u, short_v, error = truncated(u, v, rank)
    values = np.linalg.svd((u @ v).numpy(), compute_uv=False)
    expected = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
    np.testing.assert_allclose(error, expected, atol=1e-12)
    np.testing.assert_allclose(gap(short_u @ short_v, u @ v), expected, atol=1e-9)


def test_exact_factors_have_the_numerical_rank():
    change = (draws(0, 9, 3) @ draws(1, 3, 7)).float()
    u, v = exact_factors(change)
    assert u.shape[1] == 3
    assert gap((u @ v).float(), change) <= 1e-6
    u, v = exact_factors(torch.zeros(4, 5))
    assert u.shape == (4, 0)
    assert v.shape == (0, 5)


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_aggregation_error_is_that_of_dense_products(clients):
    draw = torch.Generator().manual_seed(clients)
    layers = [(7, 3, 11), (13, 2, 5)]
    bs = [[torch.randn(o, r, generator=draw) for _ in range(clients)] for o, r, _ in layers]
    as_ = [[torch.randn(r, i, generator=draw) for _ in range(clients)] for _, r, i in layers]
    p = torch.rand(clients, generator=draw, dtype=torch.float64) + 0.1
    p /= p.sum()
    missed = whole = 0.0
    for b, a in zip(bs, as_, strict=True):
        mean = sum(w * x.double() @ y.double() for w, x, y in zip(p, b, a, strict=True))
        b_mean = sum(w * x.double() for w, x in zip(p, b, strict=True))
        a_mean = sum(w * y.double() for w, y in zip(p, a, strict=True))
        missed += float((mean - b_mean @ a_mean).square().sum())
        whole += float(mean.square().sum())
    expected = (missed / whole) ** 0.5
    assert aggregation_error(bs, as_, p) == pytest.approx(expected, abs=1e-6)
