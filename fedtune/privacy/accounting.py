"""ε of Gaussian mechanisms on sampled data, composed over a history; and the noise that an ε needs.

Opacus's analyses do the work: `rdp` (Mironov, Talwar and Zhang, 2019) and `prv` (Gopi, Lee and
Wutschitz, NeurIPS 2021). A round that draws a fixed number of clients without replacement is
accounted by Wang, Balle and Kasiviswanathan (AISTATS 2019), Theorem 9.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from fedtune.errors import ScenarioError

Accountant = Literal["rdp", "prv"]
Sampling = Literal["poisson", "fixed"]
MOST_NOISE = 2.0**20
PRECISION = 1e-3
LEAST_NOISE, STRIDE, COARSE = 1e-3, 0.8, 6
Orders = tuple[float, ...]
POISSON_ORDERS: Orders = (*(1 + x / 10.0 for x in range(1, 100)), *map(float, range(12, 64)))
ORDERS: dict[Sampling, Orders] = {
    "poisson": POISSON_ORDERS,  # as Opacus has them
    "fixed": tuple(float(order) for order in range(2, 257)),
}


@dataclass(frozen=True)
class Spent:
    """Steps of one Gaussian mechanism.

    Attributes:
        noise_multiplier: z; the noise has the standard deviation z·C, the sensitivity is C.
        sample_rate: chance of one's data to be in a step.
        steps: how many.
        sampling: `poisson`, each by itself (neighbours: one added or removed); or `fixed`, so many
            without replacement (neighbours: one replaced, so that the sensitivity is 2·C).
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    sampling: Sampling = "poisson"


History = Sequence[Spent]


def epsilon(history: History, delta: float, accountant: Accountant = "rdp") -> float:
    """The ε of all steps together, at δ; infinite where a step has no noise.

    Raises:
        ScenarioError: for steps of fixed size under `prv`, which has no analysis of them.
    """
    steps = _merged(history)
    if any(spent.noise_multiplier == 0.0 for spent in steps):
        return math.inf
    if not steps:
        return 0.0
    if accountant == "prv":
        return _prv(steps, delta)
    if len({spent.sampling for spent in steps}) > 1:
        raise ValueError("one history cannot hold steps of both kinds of sampling")
    return _rdp(steps, delta, ORDERS[steps[0].sampling])[0]


@lru_cache(maxsize=4096)
def noise_multiplier(
    target: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: Accountant = "rdp",
    sampling: Sampling = "poisson",
    before: tuple[Spent, ...] = (),
) -> float:
    """The least z, to a thousandth, with which these steps after those before stay within ε.

    Args:
        target: ε.
        before: what else is spent of it.

    Raises:
        ScenarioError: if no noise is enough.
    """

    def history(z: float) -> tuple[Spent, ...]:
        return _merged([*before, Spent(z, sample_rate, steps, sampling)])

    if accountant == "prv" or sampling == "fixed":
        return _least(lambda z: epsilon(history(z), delta, accountant) <= target, 1.0, target)
    some = POISSON_ORDERS[::COARSE]  # each order by itself bounds ε, so fewer are on the safe side
    z = _least(lambda z: _rdp(history(z), delta, some)[0] <= target, 1.0, target)
    best = POISSON_ORDERS.index(_rdp(history(z), delta, some)[1])
    near = POISSON_ORDERS[max(0, best - COARSE) : best + COARSE + 1]
    return _least(lambda z: _rdp(history(z), delta, near)[0] <= target, z, target)


def _least(enough: Callable[[float], bool], high: float, target: float) -> float:
    """The least noise that is enough, to a thousandth, looked for from `high` on."""
    while not enough(high):
        high *= 2.0
        if high > MOST_NOISE:
            raise ScenarioError(f"privacy.epsilon = {target}: no noise reaches it")
    low = high
    while low > LEAST_NOISE and enough(low):
        low, high = low * STRIDE, low
    while high - low > PRECISION * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _merged(history: History) -> tuple[Spent, ...]:
    """Steps of one kind as one entry, in a fixed order."""
    sums: dict[tuple[float, float, Sampling], int] = {}
    for spent in history:
        key = (spent.noise_multiplier, spent.sample_rate, spent.sampling)
        sums[key] = sums.get(key, 0) + spent.steps
    return tuple(
        Spent(z, q, steps, sampling)
        for (z, q, sampling), steps in sorted(sums.items())
        if steps and q
    )


def _rdp(steps: tuple[Spent, ...], delta: float, orders: Orders) -> tuple[float, float]:
    """ε by Rényi divergences of these orders, and the order that gives it."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    total = sum(spent.steps * _divergences(spent, orders) for spent in steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the best order being the last
        found, order = get_privacy_spent(orders=list(orders), rdp=total, delta=delta)
    return max(0.0, float(found)), float(order)


def _divergences(spent: Spent, orders: Orders) -> NDArray[np.float64]:
    if spent.sampling == "fixed":
        return _fixed_curve(spent.sample_rate, spent.noise_multiplier)
    return _poisson_curve(spent.sample_rate, spent.noise_multiplier, orders)


@lru_cache(maxsize=4096)
def _poisson_curve(rate: float, z: float, orders: Orders) -> NDArray[np.float64]:
    """The Rényi divergence of one step at each order."""
    from opacus.accountants.analysis.rdp import compute_rdp

    return np.asarray(compute_rdp(q=rate, noise_multiplier=z, steps=1, orders=list(orders)))


@lru_cache(maxsize=4096)
def _fixed_curve(rate: float, z: float) -> NDArray[np.float64]:
    """The same for so many drawn without replacement, one replaced: the sensitivity is 2·C."""
    whole = 2.0 * np.asarray(ORDERS["fixed"]) / z**2
    return np.asarray(
        [min(_drawn(rate, int(o), whole), whole[i]) for i, o in enumerate(ORDERS["fixed"])]
    )


def _drawn(rate: float, order: int, whole: NDArray[np.float64]) -> float:
    """Theorem 9 at one order; `whole` holds the undrawn mechanism's divergence at 2, 3, ..."""
    j = np.arange(2, order + 1)
    log_choose = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
    factor = math.log(2.0) + (j - 1) * whole[: len(j)]
    factor[0] = min(math.log(4.0) + _log_expm1(whole[0]), factor[0])
    terms = j * math.log(rate) + log_choose + factor
    return float(logsumexp(np.concatenate([[0.0], terms]))) / (order - 1)


def _log_expm1(x: float) -> float:
    return x + math.log(-math.expm1(-x))


@lru_cache(maxsize=4096)
def _prv(steps: tuple[Spent, ...], delta: float) -> float:
    from opacus.accountants import PRVAccountant

    if any(spent.sampling == "fixed" for spent in steps):
        raise ScenarioError(
            "privacy.accountant = 'prv': has no analysis of a fixed number of clients a round; "
            "allowed: rdp, or clients.participation.kind = 'bernoulli'"
        )
    accountant = PRVAccountant()
    accountant.history = [(s.noise_multiplier, s.sample_rate, s.steps) for s in steps]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta))
