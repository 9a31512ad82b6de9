"""Who holds what: the realised distribution of classes over clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedtune.reporting.figure import new_figure, save_figure
from fedtune.tasks.base import Rows

MOST_BARS = 60
MOST_NAMES = 20


def class_counts(parts: list[Rows], labels: NDArray[np.int64], classes: int) -> NDArray[Any]:
    """Examples by client and class, (clients, classes)."""
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])


def draw_partition(
    path: Path, parts: list[Rows], labels: NDArray[np.int64], names: list[str]
) -> None:
    """Stacked bars, a client each; for many clients a map with clients sorted by main class."""
    counts = class_counts(parts, labels, len(names))
    if len(parts) <= MOST_BARS:
        _bars(path, counts, names)
    else:
        _map(path, counts, names)


def _bars(path: Path, counts: NDArray[Any], names: list[str]) -> None:
    figure = new_figure(max(5.0, 1.8 + 0.22 * len(counts)), 3.6)
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["tab20" if len(names) > 10 else "tab10"]
    bottom = np.zeros(len(counts))
    for index, name in enumerate(names):
        axes.bar(
            range(len(counts)), counts[:, index], bottom=bottom, label=name,
            color=colours(index % colours.N), width=0.85,
        )  # fmt: skip
        bottom += counts[:, index]
    axes.set_xlabel("client")
    axes.set_ylabel("training examples")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(names) <= MOST_NAMES:
        axes.legend(title="class", fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{len(counts)} clients, {int(counts.sum())} examples", fontsize=10)
    save_figure(figure, path)


def _map(path: Path, counts: NDArray[Any], names: list[str]) -> None:
    order = np.lexsort((-counts.max(1), counts.argmax(1)))
    figure = new_figure(7.5, 3.6)
    axes = figure.add_subplot()
    image = axes.imshow(counts[order].T, aspect="auto", interpolation="nearest", cmap="magma_r")
    figure.colorbar(image, label="training examples")
    axes.set_xlabel("client, sorted by main class")
    axes.set_ylabel("class")
    if len(names) <= MOST_NAMES:
        axes.set_yticks(range(len(names)), names)
    axes.set_title(f"{len(counts)} clients, {int(counts.sum())} examples", fontsize=10)
    save_figure(figure, path)
