"""The counter-based generator: known answers, statistics, and independence of layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtune.randomness import dropout_scale, key_of, mix, uniform


def splitmix(z: int) -> int:
    """SplitMix64's finaliser in Python's unbounded integers."""
    full = (1 << 64) - 1
    z &= full
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & full
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & full
    return z ^ (z >> 31)


@given(st.integers(-(2**63), 2**63 - 1))
def test_mix_is_splitmix64(value):
    got = int(mix(torch.tensor([value])).item()) & ((1 << 64) - 1)
    assert got == splitmix(value)


def test_keys_and_values_are_the_same_on_every_platform():
    assert key_of("init", 0, "a") == -2126817122913478669
    key = key_of("golden")
    expected = [(splitmix(i * 0x9E3779B97F4A7C15 + key) >> 40) / 2**24 for i in (1, 2, 3)]
    assert uniform(key, (3,)).tolist() == expected


def test_uniform_fills_the_unit_interval_evenly():
    values = uniform(1, (100, 1000)).numpy()
    assert values.min() >= 0
    assert values.max() < 1
    counts, _ = np.histogram(values, 20, (0, 1))
    assert np.abs(counts / 5000 - 1).max() < 0.06


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_the_share(p):
    scale = dropout_scale(torch.arange(4) * 7919, 16, 10, 130, p)
    assert float((scale == 0).float().mean()) == pytest.approx(p, abs=0.01)
    assert float(scale.mean()) == pytest.approx(1.0, abs=0.03)


def test_dropout_of_a_position_does_not_depend_on_padding_or_neighbours():
    keys = torch.tensor([11, 22, 33])
    small = dropout_scale(keys[1:2], 2, 3, 10, 0.5)
    large = dropout_scale(keys, 5, 8, 10, 0.5)
    assert torch.equal(small[0], large[1, :2, :3])
    assert not torch.equal(large[0], large[1])
    assert not torch.equal(large[1, 0], large[1, 1])
