"""Attacks on what is sent, by name."""

from __future__ import annotations

from collections.abc import Callable

from fedtune.adversaries.colluding import ALIE, IPM, Adaptive, Mimic, MinMax, MinSum
from fedtune.adversaries.crafted import Attack, Gaussian, NonFinite, Scaling, SignFlip, Uniform

ATTACKS: dict[str, Callable[..., Attack]] = {
    "sign-flip": SignFlip,
    "gaussian": Gaussian,
    "uniform": Uniform,
    "ipm": IPM,
    "alie": ALIE,
    "min-max": MinMax,
    "min-sum": MinSum,
    "mimic": Mimic,
    "scaling": Scaling,
    "non-finite": NonFinite,
    "adaptive": Adaptive,
}
