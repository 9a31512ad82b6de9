"""Means over seeds, paired differences, and how sure they are.

scipy's t and Wilcoxon tests, with Holm's correction (Holm, 1979, A simple sequentially rejective
multiple test procedure).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq

LEVEL, POWER = 0.05, 0.8
RANK_SEEDS = 6
MIDPOINTS = (np.arange(20_000) + 0.5) / 20_000
LARGEST_EFFECT = 1e6


@dataclass(frozen=True)
class Spread:
    """A sample of one value a seed.

    Attributes:
        n: seeds.
        mean: of them.
        sd: standard deviation with n - 1; None for one seed.
        low, high: the 95 % t interval of the mean; None for one seed.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """A paired difference to the reference, variant minus reference, over the seeds both have.

    Attributes:
        spread: of the differences.
        p: two-sided, of the paired t test; None where it cannot be made: fewer than two seeds, or
            differences that do not vary.
        rank_p: of Wilcoxon's signed-rank test; None below 6 seeds, where it cannot reach 0.05.
    """

    spread: Spread
    p: float | None
    rank_p: float | None


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and 95 % t interval.

    Args:
        values: at least one finite number.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean, n = float(sample.mean()), len(sample)
    if n < 2:
        return Spread(n, mean, None, None, None)
    sd = float(sample.std(ddof=1))
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * sd / math.sqrt(n)
    return Spread(n, mean, sd, mean - half, mean + half)


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Difference of two samples whose members belong together, seed by seed.

    Args:
        values, reference: of equal length, at least one.
    """
    differences = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    found = spread(differences.tolist())
    scale = float(np.abs(np.concatenate([values, reference])).max())
    if found.sd is None or found.sd <= 1e-12 * scale:
        return Difference(found, None, None)
    rank_p = None
    if found.n >= RANK_SEEDS:
        rank_p = float(stats.wilcoxon(differences, zero_method="pratt").pvalue)
    return Difference(found, float(stats.ttest_1samp(differences, 0.0).pvalue), rank_p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: the chance of any false positive stays below the level.

    The k-th smallest of m counts (m - k + 1)-fold, and no less than a smaller one. None stays None.
    """
    known = [index for index, p in enumerate(p_values) if p is not None]
    raw = np.asarray([p_values[index] for index in known], dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    steps = np.maximum.accumulate((len(raw) - np.arange(len(raw))) * raw[order])
    corrected: list[float | None] = [None] * len(p_values)
    for place, p in zip(order, np.minimum(steps, 1.0), strict=True):
        corrected[known[place]] = float(p)
    return corrected


def power(effect: float, n: int, level: float) -> float:
    """Chance that a two-sided one-sample t test at a level finds an effect.

    The noncentral t's tails, integrated over the sample's variance: scipy's `nct` gives NaN for few
    seeds and strict levels (statsmodels' `solve_power` does not converge there either).

    Args:
        effect: true mean over true standard deviation.
        n: sample size, at least two.
    """
    shift, critical = effect * math.sqrt(n), float(stats.t.ppf(1 - level / 2, n - 1))
    cuts = critical * np.sqrt(stats.chi2.ppf(MIDPOINTS, n - 1) / (n - 1))
    return float(np.mean(stats.norm.cdf(shift - cuts) + stats.norm.cdf(-shift - cuts)))


def detectable(sd: float, n: int, tests: int = 1, one_sided: bool = False) -> float:
    """The smallest true difference that a paired t test finds with a chance of 80 %.

    Args:
        sd: of the differences.
        n: seeds, at least two.
        tests: how many are made; each must then pass at the level over their number, as the first
            step of Holm's correction asks.
        one_sided: as a two-sided test at twice the level.
    """
    level = LEVEL / tests * (2 if one_sided else 1)
    return sd * float(brentq(lambda effect: power(effect, n, level) - POWER, 0.0, LARGEST_EFFECT))
