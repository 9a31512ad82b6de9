"""A map of the final metric over the axes of a comparison."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedtune.reporting.figure import INK, WIDTH, new_figure
from fedtune.reporting.measures import shown, written

Record = Mapping[str, Any]
MOST_COLUMNS = 12


def draw_heatmap(record: Record) -> Figure | None:
    """Final metric over the first axis with several values and all others, or but the second."""
    axes_of = [(key, values) for key, values in record["axes"].items() if len(values) > 1]
    if len(axes_of) < 2:
        return None
    (down, rows), *others = axes_of
    if math.prod(len(values) for _, values in others) > MOST_COLUMNS:
        others = others[:1]
    columns = [
        dict(zip([key for key, _ in others], values, strict=True))
        for values in itertools.product(*(values for _, values in others))
    ]
    table = np.full((len(rows), len(columns)), np.nan)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            found = [
                family["measures"]["final"]["mean"]
                for family in record["families"]
                if {**family["over"], **column, down: row} == family["over"]
                and family["measures"]["final"]
            ]
            table[i, j] = np.mean(found) if found else np.nan
    figure = new_figure(max(WIDTH, 2.2 + 0.9 * len(columns)), max(2.4, 1.2 + 0.45 * len(rows)))
    axes = figure.add_subplot()
    _cells(axes, table, record)
    labels = ["\n".join(shown(value) for value in column.values()) for column in columns]
    axes.set_xticks(range(len(columns)), labels, fontsize=8)
    axes.set_yticks(range(len(rows)), [shown(value) for value in rows])
    axes.set_xlabel(", ".join(key for key, _ in others))
    axes.set_ylabel(down)
    return figure


def _cells(axes: Axes, table: Any, record: Record) -> None:
    """A coloured field with its number for each mean."""
    colours = "viridis_r" if record["lower_is_better"] else "viridis"
    axes.imshow(np.ma.masked_invalid(table), cmap=colours, aspect="auto")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2 if np.isfinite(table).any() else 0.0
    for (i, j), value in np.ndenumerate(table):
        dark = (value < middle) != bool(record["lower_is_better"])
        text = written(float(value), "metric", record["metric"])
        axes.text(j, i, text, ha="center", va="center", color="white" if dark else INK, fontsize=9)
