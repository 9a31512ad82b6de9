"""The learning curve of a run, as `curve.png` in its directory."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedtune.report.figure import ACCENT, MUTED, new_figure, save_figure
from fedtune.runs.directory import RunDirectory


def draw_curve(directory: RunDirectory) -> Path:
    """Draw metric and loss over the rounds; gives the picture's path."""
    summary = directory.summary
    looks = [(line["round"], line["eval"]) for line in directory.metrics if line["eval"]]
    points = [(0, summary["initial"]), *looks]
    metrics = [name for name in ("accuracy", "perplexity") if name in looks[-1][1]] + ["loss"]
    figure = new_figure(4.6 * len(metrics), 3.4)
    for index, name in enumerate(metrics):
        axes = figure.add_subplot(1, len(metrics), index + 1)
        _panel(axes, name, [(r, e[name]) for r, e in points if name in e])
    where = "clients' held-out data" if directory.scenario.task.head == "local" else "test data"
    figure.suptitle(
        f"{summary['strategy']} · {summary['adapter']} · {directory.scenario.task.data}, {where}",
        fontsize=10,
    )
    path = directory.path / "curve.png"
    save_figure(figure, path)
    return path


def _panel(axes: Axes, name: str, points: list[tuple[int, float]]) -> None:
    rounds, values = zip(*points, strict=True)
    axes.plot(rounds, values, color=ACCENT, linewidth=2, marker="o", markersize=3)
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
    axes.grid(color=MUTED, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
