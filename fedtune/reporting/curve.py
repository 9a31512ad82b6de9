"""The learning curve of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedtune.reporting.figure import ACCENT, MUTED, new_figure, save_figure


def draw_curve(
    path: Path, looks: Sequence[tuple[int, Mapping[str, float | None]]], title: str
) -> None:
    """Draw metric and loss over the rounds.

    Args:
        path: of the PNG.
        looks: (round, evaluation) pairs, the one before round 1 included.
        title: what was run on what.
    """
    metrics = [name for name in ("accuracy", "perplexity", "nmsd") if name in looks[-1][1]] + [
        "loss"
    ]
    figure = new_figure(4.6 * len(metrics), 3.4)
    for index, name in enumerate(metrics):
        axes = figure.add_subplot(1, len(metrics), index + 1)
        points = [(r, value) for r, found in looks if (value := found.get(name)) is not None]
        _panel(axes, name, points)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _panel(axes: Axes, name: str, points: list[tuple[int, float]]) -> None:
    rounds, values = zip(*points, strict=True) if points else ((), ())
    axes.plot(rounds, values, color=ACCENT, linewidth=2, marker="o", markersize=3)
    if not points:
        return
    text = f"{values[-1]:.1%}" if name == "accuracy" else f"{values[-1]:.3f}"
    axes.annotate(
        text,
        (rounds[-1], values[-1]),
        xytext=(-4, -12 if name == "accuracy" else 8),
        textcoords="offset points",
        ha="right",
        color=ACCENT,
        weight="bold",
    )
    axes.set_xlabel("round")
    axes.set_ylabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if name == "accuracy":
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if name == "perplexity":
        axes.set_yscale("log")
    axes.grid(color=MUTED, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
