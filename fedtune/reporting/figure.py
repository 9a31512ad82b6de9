"""Figures without a display, in one style."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedtune.files import write_atomically
from fedtune.reporting.measures import SHARES
from fedtune.reporting.style import Style

INK, ACCENT, MUTED = "#1f2933", "#2563eb", "#94a3b8"
NO_DATES: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}}
WIDTH, LABEL_GAP = 4.8, 0.055
SAMPLE = (1.02, 1.055, 1.09)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; size in inches."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG or SVG, by the path's suffix; the same figure gives the same bytes."""
    write_atomically(path, image_bytes(figure, path.suffix.removeprefix(".")))


def image_bytes(figure: Figure, form: str) -> bytes:
    """A figure as the bytes of a `png` or `svg`."""
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fedtune"}):
        figure.savefig(buffer, format=form, metadata=NO_DATES[form])
    return buffer.getvalue()


def tidy(axes: Axes, metric: str, vertical: bool = True) -> None:
    """Light grid, no box, and the axis of a metric in its own units."""
    axes.grid(color=MUTED, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axis = axes.yaxis if vertical else axes.xaxis
    if metric in SHARES:
        axis.set_major_formatter(lambda value, _: f"{value:.0%}")


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, Style]]) -> None:
    """Write names beside the ends of lines, moved apart where they would overlap.

    Before each stands a piece of its line.

    Args:
        ends: x, y, text and style of each.
    """
    axes.figure.canvas.draw()
    inverse = axes.transAxes.inverted()
    ordered = sorted(ends, key=lambda end: end[1])
    points = [axes.transData.transform((x, y)) for x, y, _, _ in ordered]
    heights = spread_out([float(inverse.transform(point)[1]) for point in points])
    for (x, y, text, style), height in zip(ordered, heights, strict=True):
        axes.add_artist(Line2D(
            SAMPLE, [height] * len(SAMPLE), color=style.colour, linestyle=style.dash, linewidth=1.6,
            marker=style.marker, markersize=4, markevery=[1], transform=axes.transAxes,
            clip_on=False,
        ))  # fmt: skip
        axes.annotate(
            text, (x, y), xycoords="data", xytext=(SAMPLE[-1] + 0.02, height),
            textcoords="axes fraction", color=style.colour, fontsize=9, va="center",
            annotation_clip=False,
        )  # fmt: skip


def spread_out(heights: Sequence[float]) -> list[float]:
    """Rising heights moved apart to `LABEL_GAP`, as little as that takes, and not above 1."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LABEL_GAP) if placed else height)
    ceiling = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - LABEL_GAP
    return placed
