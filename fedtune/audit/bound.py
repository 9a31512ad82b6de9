"""A lower bound on ε from guesses about which canaries took part in one run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

SHARES = (1.0, 0.5, 0.25, 0.1)
MOST, PRECISION = 20.0, 1e-3


@dataclass(frozen=True)
class Bound:
    """What guesses show.

    Attributes:
        epsilon: that the run has at least, with the confidence asked for; 0 shows nothing.
        guesses: how many canaries were guessed, and
        correct: how many of them rightly, where that bound comes from.
        auc: area under the ROC curve of the scores; 0.5 is chance.
    """

    epsilon: float
    guesses: int
    correct: int
    auc: float


def bound(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    delta: float,
    confidence: float = 0.95,
) -> Bound:
    """The lower bound from scores, the surest guesses first.

    The share of canaries that is guessed is the best of four; each is given a quarter of the error,
    so that the choice costs no confidence.

    Args:
        scores: (m,), higher for those that seem to have taken part.
        included: (m,), which of them did: each with probability 1/2, independently.
        delta: of the mechanism.
    """
    m, found = len(scores), Bound(0.0, 0, 0, float(roc_auc_score(included, scores)))
    order = np.argsort(-scores, kind="stable")
    for share in SHARES:
        half = max(1, round(m * share / 2))
        correct = int(included[order[:half]].sum() + (~included[order[-half:]]).sum())
        guesses = 2 * half
        level = (1.0 - confidence) / len(SHARES)
        epsilon = lower_bound(m, guesses, correct, delta, level)
        if found.guesses == 0 or epsilon > found.epsilon:
            found = Bound(epsilon, guesses, correct, found.auc)
    return found


def lower_bound(m: int, guesses: int, correct: int, delta: float, level: float) -> float:
    """The largest ε that so many right guesses refute.

    Args:
        m: canaries, guessed or not.
        level: chance to refute a true ε.
    """
    low, high = 0.0, MOST
    if chance(m, guesses, correct, 0.0, delta) > level:
        return 0.0
    while high - low > PRECISION:
        middle = (low + high) / 2.0
        refuted = chance(m, guesses, correct, middle, delta) <= level
        low, high = (middle, high) if refuted else (low, middle)
    return low


def chance(m: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The most likely so many right guesses can be under (ε, δ): Steinke, Nasr and Jagielski
    (NeurIPS 2023), Theorem 5.2.

    With W binomial of the guesses and e^ε/(1 + e^ε): P[W ≥ v] + 2mδ·max_i P[v > W ≥ v - i]/i.
    """
    right = 1.0 / (1.0 + np.exp(-epsilon))
    sure = float(binom.sf(correct - 1, guesses, right))
    if correct == 0:
        return 1.0
    i = np.arange(1, correct + 1)
    below = np.cumsum(binom.pmf(correct - i, guesses, right))
    return min(1.0, sure + 2.0 * m * delta * float((below / i).max()))
