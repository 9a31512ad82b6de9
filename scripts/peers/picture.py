"""The picture of scripts/bench_peers.py."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from peers.work import JOBS

from fedtune.reporting.figure import INK, new_figure, save_figure

SIDES = ("fedtune", "pfl", "flower")
COLOURS = ("#2563eb", "#d97706", "#059669")


def rates(job: dict[str, Any], side: str) -> list[float]:
    """Clients a second of each repeat."""
    return [job["clients"] / one["round"] for one in job["sides"][side]]


def draw(found: dict[str, Any], path: Path) -> None:
    """Clients a second of every side, by job; and the ratios over a client's images."""
    figure = new_figure(11, 4)
    bars, curve = figure.subplots(1, 2, width_ratios=[3, 2])
    names = list(found["jobs"])
    for shift, (side, colour) in enumerate(zip(SIDES, COLOURS, strict=True)):
        there = [n for n in names if side in found["jobs"][n]["sides"]]
        places = [names.index(n) + 0.27 * (shift - 1) for n in there]
        heights = [statistics.median(rates(found["jobs"][n], side)) for n in there]
        drawn = bars.bar(places, heights, 0.25, label=side, color=colour)
        bars.bar_label(drawn, fmt="%.0f", fontsize=7, color=INK)
    bars.set_yscale("log")
    bars.set_xticks(range(len(names)), names)
    bars.set_ylabel("clients a second")
    bars.legend(frameon=False)
    steps = [name for name in names if JOBS[name].curve]
    for side, colour in zip(SIDES[1:], COLOURS[1:], strict=True):
        if any(not {SIDES[0], side} <= set(found["jobs"][n]["sides"]) for n in steps):
            continue
        ratios = [
            statistics.median(rates(found["jobs"][n], "fedtune"))
            / statistics.median(rates(found["jobs"][n], side))
            for n in steps
        ]
        curve.plot([JOBS[n].curve for n in steps], ratios, "o-", color=colour, label=side)
    curve.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    curve.set_xscale("log")
    curve.set_yscale("log")
    curve.set_xticks([JOBS[n].curve for n in steps], [str(JOBS[n].curve) for n in steps])
    curve.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    curve.minorticks_off()
    curve.set_xlabel("images of a client (ViT, LoRA; batches of 2, 2, 8, 20)")
    curve.set_ylabel("fedtune ÷ it, clients a second")
    curve.legend(frameon=False)
    save_figure(figure, path)
