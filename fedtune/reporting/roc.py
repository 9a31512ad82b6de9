"""ROC curves of an audit, and what (ε, δ) allows of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from fedtune.reporting.figure import MUTED, label_ends, new_figure, tidy
from fedtune.reporting.style import styles

GRID = np.linspace(0.0, 1.0, 401)


def draw_roc(
    scores: Mapping[str, NDArray[np.float64]],
    included: NDArray[np.bool_],
    promised: float | None,
    delta: float,
) -> Figure:
    """True against false positives, a line an attack; above the grey region is not allowed.

    Args:
        scores: of each canary, by attack.
        included: which took part.
        promised: ε, if one is.
    """
    figure = new_figure(7.6, 4.2)
    axes = figure.subplots()
    axes.plot(GRID, GRID, color=MUTED, linewidth=1.0, linestyle="dotted")
    if promised is not None and math.isfinite(promised):
        axes.fill_between(GRID, 0.0, allowed(GRID, promised, delta), color=MUTED, alpha=0.15)
    ends = []
    for (name, values), style in zip(scores.items(), styles([None] * len(scores)), strict=True):
        false, true, _ = roc_curve(included, values)
        axes.plot(false, true, color=style.colour, linestyle=style.dash, linewidth=1.6)
        middle = int(np.searchsorted(false, 0.5))
        ends.append((1.0, float(true[min(middle, len(true) - 1)]), name, style))
    axes.set_xlabel("canaries that took no part, called members")
    axes.set_ylabel("members, called members")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_aspect("equal")
    tidy(axes, "accuracy")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    label_ends(axes, ends)
    return figure


def allowed(false: NDArray[np.float64], epsilon: float, delta: float) -> NDArray[np.float64]:
    """The most true positives that (ε, δ) allows at rates of false ones (Kairouz et al., 2015)."""
    factor = math.exp(epsilon)
    upper = np.minimum(factor * false + delta, 1.0 - (1.0 - delta - false) / factor)
    return np.clip(upper, 0.0, 1.0)
