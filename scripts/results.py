"""Federated against centralised training of the same adapter, on each data set, over seeds.

The centralised line is the same scenario with one client that holds all examples of the others, for
as many passes over the data. Both lines choose their learning rate from one grid, on seed 0's test
metric, then run every seed with it. Finished runs in runs/results are used again.

    .venv/bin/python scripts/results.py                       # all; hours on 2 CPU cores
    .venv/bin/python scripts/results.py banking77 --seeds 1
    .venv/bin/python scripts/results.py --draw                # the page and the picture again
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

import fedtune
from fedtune.reporting.figure import new_figure, save_figure
from fedtune.runs.directory import RunDirectory
from fedtune.scenario import load_scenario

ROOT = Path(__file__).parent.parent
RUNS, OUT = ROOT / "runs" / "results", ROOT / "docs" / "results"
GRIDS = {
    "banking77": (2e-3, 5e-3),
    "goemotions": (1e-3, 3e-3),
    "e2e-nlg": (3e-3, 1e-2),
    "gsm8k": (3e-3, 1e-2),
    "shakespeare": (3e-3, 1e-2),
    "mnist-by-writer": (1e-3, 3e-3),
}
MARKS = ("<!-- table -->", "<!-- end -->")
COLOURS = {"federated": "#2563eb", "centralised": "#d97706"}
Look = tuple[float, float]


def metric_of(found: dict[str, Any]) -> str:
    return "accuracy" if "accuracy" in found else "perplexity"


def centralised(name: str) -> dict[str, Any]:
    """What makes a scenario's centralised line; its rounds are passes over all data."""
    scenario = load_scenario(name)
    share = scenario.clients.participation.value
    assert isinstance(share, float)
    passes = max(1, round(scenario.run.rounds * share))
    return {
        "clients.count": 1,
        "clients.partition": {"kind": "iid"},
        "clients.participation.value": 1.0,
        "run.rounds": passes,
        "run.eval_every": 1,
    }


def one_run(name: str, line: str, rate: float, seed: int, passes: float) -> dict[str, Any]:
    """A run's metric before, after and on the way, by passes over the data."""
    path = RUNS / f"{name}-{line}-{rate:g}-{seed}"
    if not RunDirectory(path).summary:
        shutil.rmtree(path, ignore_errors=True)
        over = centralised(name) if line == "centralised" else {}
        fedtune.run(name, {**over, "local.lr": rate, "run.seed": seed}, out=path)
    directory = RunDirectory.open(path)
    summary, key = directory.summary, metric_of(directory.summary["initial"])
    rounds = directory.scenario.run.rounds
    looks = [(0.0, summary["initial"][key])]
    looks += [(r / rounds * passes, found[key]) for r, found in directory.looks]
    extra = {k: v for k, v in summary["final"].items() if k == "exact_match"}
    return {
        "seed": seed, "lr": rate, "before": looks[0][1], "after": looks[-1][1], "looks": looks,
        "metric": key, "seconds": summary["seconds"], **extra,
        "bytes_up": summary["bytes_up"], "clients": len(directory.read_partition() or []),
    }  # fmt: skip


def measure(name: str, seeds: int) -> dict[str, Any]:
    """Both lines of a data set."""
    passes = float(centralised(name)["run.rounds"])
    found: dict[str, Any] = {"name": name, "passes": passes}
    for line in COLOURS:
        tried = [one_run(name, line, rate, 0, passes) for rate in GRIDS[name]]
        sign = 1 if tried[0]["metric"] == "accuracy" else -1
        best = max(tried, key=lambda run: sign * run["after"])
        runs = [best, *(one_run(name, line, best["lr"], s, passes) for s in range(1, seeds))]
        found[line] = {"grid": {f"{t['lr']:g}": t["after"] for t in tried}, "runs": runs}
        print(time.strftime("%H:%M:%S"), name, line, describe(found[line]), flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def describe(line: dict[str, Any], key: str = "after") -> str:
    values = [run[key] for run in line["runs"]]
    mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    if line["runs"][0]["metric"] == "accuracy":
        return f"{mean:.1%} ± {spread:.1%}"
    return f"{mean:.2f} ± {spread:.2f}" if mean < 1000 else f"{mean:.0f}"


def table(found: list[dict[str, Any]]) -> str:
    rows = [
        "| scenario | metric | before | federated | centralised | rates | passes | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        fed, central = one["federated"], one["centralised"]
        rates = f"{fed['runs'][0]['lr']:g}, {central['runs'][0]['lr']:g}"
        rows.append(
            f"| `{one['name']}` | {fed['runs'][0]['metric']} | {describe(fed, 'before')} "
            f"| **{describe(fed)}** | {describe(central)} | {rates} | {one['passes']:g} "
            f"| {len(fed['runs'])} |"
        )
    return "\n".join(rows) + "\n"


def panel(axes: Axes, one: dict[str, Any]) -> None:
    for line, colour in COLOURS.items():
        for index, run in enumerate(one[line]["runs"]):
            xs, ys = zip(*run["looks"], strict=True)
            label = line if index == 0 else None
            axes.plot(xs, ys, color=colour, alpha=0.8, linewidth=1.4, label=label)
    accuracy = one["federated"]["runs"][0]["metric"] == "accuracy"
    if accuracy:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_ylim(0, 1)
    else:
        axes.set_yscale("log")
    axes.set_title(one["name"], fontsize=10)
    axes.set_xlabel("passes over the data")
    axes.set_ylabel("test accuracy" if accuracy else "test perplexity")
    axes.grid(alpha=0.3)


def draw(found: list[dict[str, Any]]) -> None:
    figure = new_figure(11, 3.3 * -(-len(found) // 3))
    for index, one in enumerate(found):
        panel(figure.add_subplot(-(-len(found) // 3), 3, index + 1), one)
    figure.axes[0].legend(fontsize=8)
    save_figure(figure, OUT / "results.png")


def write_page(found: list[dict[str, Any]]) -> None:
    """Put the table into docs/results.md, between its two marks."""
    page = ROOT / "docs" / "results.md"
    before, _, rest = page.read_text("utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n{table(found)}{MARKS[1]}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", default=list(GRIDS), help=", ".join(GRIDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draw", action="store_true", help="draw what was measured before")
    arguments = parser.parse_args()
    for name in [] if arguments.draw else arguments.names:
        if name not in GRIDS:
            sys.exit(f"{name}: allowed: {', '.join(GRIDS)}")
        measure(name, arguments.seeds)
    files = [OUT / f"{name}.json" for name in GRIDS]
    found = [json.loads(file.read_text()) for file in files if file.exists()]
    write_page(found)
    draw(found)


if __name__ == "__main__":
    main()
