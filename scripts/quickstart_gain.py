"""What the quickstart gains from its adapters: five seeds, paired, against the head alone.

Runs the quickstart with FedIT (`fedavg`), with FFA-LoRA and with the adapter off, the last over a
grid of learning rates of which the best on the test data counts (a choice in the baseline's
favour).
Writes docs/quickstart.json and docs/quickstart.png.

    .venv/bin/python scripts/quickstart_gain.py        # about 5 minutes on 2 CPU cores
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import fedtune
from fedtune.reporting.figure import ACCENT, INK, MUTED, new_figure, save_figure

SEEDS = range(5)
HEAD_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
OUT = Path(__file__).parent.parent / "docs"
Curves = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def curves(overrides: dict[str, Any], seeds: range = SEEDS) -> Curves:
    """Accuracy before round 1 and after each round, (seeds, rounds + 1)."""
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            done = fedtune.run("quickstart", {**overrides, "run.seed": seed}, Path(folder) / "run")
            looks = [done.summary["initial"], *(line["eval"] for line in done.metrics)]
        found.append([look["accuracy"] for look in looks])
    return np.asarray(found)


def gain(treated: Curves, control: Curves) -> dict[str, Any]:
    """The paired difference of the final accuracies with its 95 % t interval."""
    difference = treated[:, -1] - control[:, -1]
    half = stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference)
    middle = float(difference.mean())
    return {
        "mean": middle,
        "interval": [middle - float(half), middle + float(half)],
        "by_seed": difference.tolist(),
    }


def draw(lines: dict[str, tuple[Curves, str]], path: Path) -> None:
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    for name, (values, colour) in lines.items():
        rounds, mean, spread = range(values.shape[1]), values.mean(0), values.std(0, ddof=1)
        label = f"{name}: {mean[-1]:.1%}"
        axes.plot(rounds, mean, color=colour, linewidth=2, label=label)
        axes.fill_between(rounds, mean - spread, mean + spread, color=colour, alpha=0.15)
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy on handwritten digits")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylim(0.5, 1.0)
    axes.legend(loc="lower right", title=f"mean of {len(SEEDS)} seeds, band: 1 s.d.")
    axes.grid(color=MUTED, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def main() -> None:
    adapters, ffa = curves({}), curves({"strategy.name": "ffa-lora"})
    heads = {rate: curves({"adapter.kind": "none", "local.lr": rate}) for rate in HEAD_RATES}
    best = max(heads, key=lambda rate: heads[rate][:, -1].mean())
    equal = heads[3e-3]
    found = {
        "final accuracy": {
            "fedavg": adapters[:, -1].tolist(),
            "ffa-lora": ffa[:, -1].tolist(),
            **{f"head alone, lr {rate:g}": c[:, -1].tolist() for rate, c in heads.items()},
        },
        "gain over the head trained equally": gain(adapters, equal),
        f"gain over the head at its best rate ({best:g})": gain(adapters, heads[best]),
        "gain of ffa-lora over the head at its best rate": gain(ffa, heads[best]),
        "command": ".venv/bin/python scripts/quickstart_gain.py",
    }
    (OUT / "quickstart.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    lines = {
        "LoRA (fedavg)": (adapters, ACCENT),
        "FFA-LoRA": (ffa, "#059669"),
        f"head alone, best of {len(HEAD_RATES)} rates": (heads[best], "#d97706"),
        "head alone, same rate": (equal, INK),
    }
    draw(lines, OUT / "quickstart.png")


if __name__ == "__main__":
    main()
