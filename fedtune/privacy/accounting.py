"""ε of Gaussian mechanisms on sampled data, composed over a history; and the noise that an ε needs.

Opacus's analyses do the work: `rdp` (Mironov, Talwar and Zhang, 2019) and `prv` (Gopi, Lee and
Wutschitz, NeurIPS 2021). A round that draws a fixed number of clients without replacement is
accounted by Wang, Balle and Kasiviswanathan (AISTATS 2019), Theorem 9.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
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
FIXED_ORDERS = np.arange(2, 257)


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
    found = []
    for sampling in ("poisson", "fixed"):  # each kind has orders of its own
        own = tuple(spent for spent in steps if spent.sampling == sampling)
        if own:
            found.append(_rdp(own, delta, sampling))
    if len(found) == 2:
        raise ValueError("one history cannot hold steps of both kinds of sampling")
    return found[0]


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

    def found(z: float) -> float:
        return epsilon([*before, Spent(z, sample_rate, steps, sampling)], delta, accountant)

    high = 1.0
    while found(high) > target:
        high *= 2.0
        if high > MOST_NOISE:
            raise ScenarioError(
                f"privacy.epsilon = {target}: cannot be reached with privacy.delta = {delta}"
            )
    low = 0.0 if high == 1.0 else high / 2.0
    while high - low > PRECISION * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if found(middle) <= target else (middle, high)
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


def _rdp(steps: tuple[Spent, ...], delta: float, sampling: Sampling) -> float:
    from opacus.accountants.analysis.rdp import get_privacy_spent

    curve = _fixed_curve if sampling == "fixed" else _poisson_curve
    orders, _ = curve(1.0, 1.0)
    total = sum(
        spent.steps * curve(spent.sample_rate, spent.noise_multiplier)[1] for spent in steps
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the best order being the last
        found, _ = get_privacy_spent(orders=orders, rdp=total, delta=delta)
    return max(0.0, float(found))


@lru_cache(maxsize=4096)
def _poisson_curve(rate: float, z: float) -> tuple[list[float], NDArray[np.float64]]:
    """Orders, and the Rényi divergence of one step at each."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = list(RDPAccountant.DEFAULT_ALPHAS)
    return orders, np.asarray(compute_rdp(q=rate, noise_multiplier=z, steps=1, orders=orders))


@lru_cache(maxsize=4096)
def _fixed_curve(rate: float, z: float) -> tuple[list[float], NDArray[np.float64]]:
    """The same for so many drawn without replacement, one replaced: the sensitivity is 2·C."""
    orders = FIXED_ORDERS.astype(np.float64)
    whole = 2.0 * orders / z**2
    found = [min(_drawn(rate, int(order), whole), whole[i]) for i, order in enumerate(orders)]
    return orders.tolist(), np.asarray(found)


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
