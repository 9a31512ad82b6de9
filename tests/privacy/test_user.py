"""The user-level mechanism: its sensitivity, its noise, and a bound that follows a quantile."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtune.privacy.streams import Streams
from fedtune.privacy.user import UserMechanism, split_multiplier
from fedtune.scenario.privacy import AdaptiveClip


@given(st.integers(0, 2**31), st.integers(1, 12), st.floats(0.05, 20.0))
def test_one_client_more_or_less_moves_the_sum_by_the_clip_at_most(seed, n, clip):
    rng = np.random.default_rng(seed)
    updates = torch.from_numpy(rng.normal(size=(n, 7)) * rng.lognormal(2.0, 2.0, size=(n, 1)))
    mechanism = UserMechanism(clip, 0.0, 5.0, Streams(0))
    whole, without = mechanism(updates, 1), mechanism(updates[1:], 1)
    assert float((whole - without).norm()) * 5.0 <= clip * (1 + 1e-6)


def test_sums_are_of_clipped_updates_over_the_expected_number():
    updates = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64)
    found = UserMechanism(1.0, 0.0, 10.0, Streams(0))(updates, 1)
    assert found.tolist() == pytest.approx([(0.6 + 0.3) / 10, (0.8 + 0.4) / 10], rel=1e-5)


def test_noise_is_that_of_the_clip_over_the_expected_number_also_in_an_empty_round():
    mechanism = UserMechanism(2.0, 3.0, 10.0, Streams(5))
    empty = torch.zeros(0, 300_000, dtype=torch.float64)
    rounds = [mechanism(empty, r) for r in (1, 2)]
    for noise in rounds:
        assert float(noise.std()) == pytest.approx(2.0 * 3.0 / 10.0, rel=0.01)
    assert abs(float(torch.corrcoef(torch.stack(rounds))[0, 1])) < 5 / math.sqrt(300_000)
    secret = [UserMechanism(2.0, 3.0, 10.0, Streams())(empty, 1) for _ in range(2)]
    assert not torch.equal(*secret)


def test_an_adaptive_bound_settles_at_the_quantile_of_the_norms():
    norms = torch.linspace(0.1, 4.0, 40, dtype=torch.float64)
    updates = norms.unsqueeze(1) * torch.nn.functional.normalize(torch.ones(40, 5).double(), dim=1)
    for quantile in (0.25, 0.5, 0.8):
        for start in (1e-3, 50.0):
            mechanism = UserMechanism(start, 0.0, 40.0, Streams(0), AdaptiveClip(quantile=quantile))
            for server_round in range(1, 400):
                mechanism(updates, server_round)
            share = float((norms <= mechanism.clip).double().mean())
            assert share == pytest.approx(quantile, abs=1.5 / 40)


def test_count_and_updates_cost_together_what_the_accountant_is_told():
    z = split_multiplier(1.0, 5.0)
    assert z > 1.0
    assert z**-2 + (2 * 5.0) ** -2 == pytest.approx(1.0)
    assert split_multiplier(1.0, 0.0) == 1.0
    with pytest.raises(ValueError, match="too little for a noise multiplier of 1"):
        split_multiplier(1.0, 0.5)


def test_the_bound_is_taken_up_again():
    one = UserMechanism(1.0, 1.0, 40.0, Streams(0), AdaptiveClip())
    one(torch.ones(3, 4), 1)
    other = UserMechanism(1.0, 1.0, 40.0, Streams(0), AdaptiveClip())
    other.load_state_dict(one.state_dict())
    assert other.clip == one.clip != 1.0
