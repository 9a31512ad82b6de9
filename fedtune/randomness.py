"""Counter-based random numbers: a pure function of a key and a position.

Every draw of the platform is keyed by what it is for (seed, round, client, step, module), so no
draw depends on how clients are grouped, in which order they run, or on a generator's state. The
mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) in wrapping
64-bit integers, hence the same on every platform and device.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_LANES = 4
_LANE_RANGE = 1 << 16


def key_of(*parts: int | str) -> int:
    """A signed 64-bit key of the given parts; equal parts give equal keys everywhere."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator of its own for the given parts (permutations, sampling)."""
    return np.random.Generator(np.random.Philox(key=key_of(*parts) & (2**64 - 1)))


def aligned(draws: NDArray[np.float64]) -> Tensor:
    """NumPy's draws in memory of torch's: products of matrices round by where these lie."""
    return torch.from_numpy(draws).clone()


def mix(z: Tensor) -> Tensor:
    """Scramble int64 values: SplitMix64's finaliser, element by element."""
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def uniform(key: int, shape: tuple[int, ...]) -> Tensor:
    """float32 values of U[0, 1) on the CPU, multiples of 2⁻²⁴, exact on every platform."""
    count = int(np.prod(shape, dtype=np.int64))
    bits = _shift(mix(torch.arange(1, count + 1) * _GOLDEN + key), 40)
    return (bits.to(torch.float32) * 2.0**-24).reshape(shape)


def dropout_scale(keys: Tensor, rows: int, middle: int, features: int, p: float) -> Tensor:
    """What dropout multiplies with: 0 where dropped, 1/(1−p) elsewhere.

    The draw at (client, row, middle position, feature) depends on those four alone, so padding
    rows or positions changes no other draw. p is rounded to a multiple of 2⁻¹⁶ and the scale
    follows the rounded value, so the mean is exact.

    Args:
        keys: int64, (K,), one key a client (of the step and module).
        rows: examples a client.
        middle: positions between example and feature (tokens), 1 if none.
        features: size of the last dimension.
        p: probability of dropping, in [0, 1).

    Returns:
        float32, (K, rows, middle, features).
    """
    device = keys.device
    row = torch.arange(rows, device=device).view(1, -1, 1) << 32
    position = row + torch.arange(middle, device=device)
    lanes = -(-features // _LANES)
    lane = torch.arange(1, lanes + 1, device=device) * _GOLDEN
    bits = mix(mix(keys.view(-1, 1, 1) + position * _GOLDEN).unsqueeze(-1) + lane)
    values = bits.view(torch.int16)[..., :features]
    threshold = min(round(p * _LANE_RANGE), _LANE_RANGE - 1)
    keep = values >= threshold - _LANE_RANGE // 2
    return keep.to(torch.float32) / (1.0 - threshold / _LANE_RANGE)


def _shift(z: Tensor, n: int) -> Tensor:
    """Logical (zero-filling) right shift of int64."""
    return (z >> n) & ((1 << (64 - n)) - 1)
