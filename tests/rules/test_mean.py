"""The weighted mean and the weight policies against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtune.rules.base import Updates
from fedtune.rules.mean import Mean
from fedtune.rules.weights import policy_weights

COUNTS = st.lists(st.integers(1, 10_000), min_size=1, max_size=20)


@given(COUNTS, st.integers(0, 2**31))
def test_mean_is_numpys_average(counts, seed):
    updates = np.random.default_rng(seed).normal(size=(len(counts), 5))
    weights = policy_weights("reported", counts, 1000)
    found = Mean()(Updates(torch.from_numpy(updates), weights))
    np.testing.assert_allclose(
        found.update, np.average(updates, axis=0, weights=counts), atol=1e-12
    )
    assert torch.equal(found.coefficients, weights)


@given(COUNTS)
@pytest.mark.parametrize("policy", ["uniform", "reported", "capped"])
def test_weights_sum_to_one_and_follow_their_policy(policy, counts):
    weights = policy_weights(policy, counts, 50).numpy()
    expected = {
        "uniform": np.ones(len(counts)),
        "reported": np.asarray(counts),
        "capped": np.minimum(counts, 50),
    }[policy]
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-12)
