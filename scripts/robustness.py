"""docs/robustness.md from the comparison `byzantine`: worst cases, the price of robustness, maps.

    fedtune compare byzantine --out runs/compare/byzantine         # hours, resumable
    .venv/bin/python scripts/robustness.py runs/compare/byzantine

Several directories are read as one grid (its parts, trained side by side).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from fedtune.comparison.directory import ComparisonDirectory
from fedtune.reporting.figure import new_figure, save_figure
from fedtune.reporting.measures import shown

ROOT = Path(__file__).parent.parent
SHOWN = ROOT / "docs" / "robustness"
PAGE = ROOT / "docs" / "robustness.md"
MARKS = ("<!-- figures -->", "<!-- end -->")
CLIENTS = 20
SPLITS = {"iid": "α = ∞", "dirichlet": "α = 0.3"}


def read(paths: list[str]) -> pd.DataFrame:
    """A row a run: defence, attack, f, split, seed, learning rate, accuracy and seconds."""
    table = pd.concat([ComparisonDirectory(path).frame() for path in paths], ignore_index=True)
    table = table[table["status"] == "done"]
    pre = table["strategy.pre"].map(lambda parts: " + nnm" if "nnm" in parts else "")
    return pd.DataFrame(
        {
            "defence": table["strategy.rule"] + pre,
            "attack": table["attack.kind"].map(shown),
            "f": (table["attack.fraction"] * CLIENTS).round().astype(int),
            "split": table["clients.partition"].map(lambda part: SPLITS[part["kind"]]),
            "seed": table["seed"],
            "rate": table["local.lr"],
            "accuracy": table["final"],
            "seconds": table["seconds"],
        }
    )


def worst(table: pd.DataFrame) -> pd.DataFrame:
    """The least accuracy over attacks of the mean over seeds, by defence, split and f."""
    attacked = table[(table["attack"] != "none") & (table["f"] > 0)]
    means = attacked.groupby(["defence", "split", "f", "attack"], sort=False)["accuracy"].mean()
    return means.groupby(["defence", "split", "f"], sort=False).min().unstack(["split", "f"])


def calm(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy without an attack while prepared for f, by defence, split and f."""
    quiet = table[table["attack"] == "none"]
    means = quiet.groupby(["defence", "split", "f"], sort=False)["accuracy"].mean()
    return means.unstack(["split", "f"])


def in_percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f}"


def summary_table(table: pd.DataFrame) -> str:
    """Worst case over attacks and price of robustness, by defence."""
    bad, quiet = worst(table), calm(table)
    splits = [s for s in SPLITS.values() if s in set(table["split"])]
    heads = [f"worst, f = {f}, {s}" for s in splits for f in (2, 4)]
    heads += [f"price, f = 4, {s}" for s in splits]
    lines = [f"| defence | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    order = bad.mean(axis=1).sort_values(ascending=False).index
    for defence in order:
        cells = [in_percent(bad.loc[defence].get((s, f), np.nan)) for s in splits for f in (2, 4)]
        for split in splits:
            plain, prepared = quiet.loc["mean", (split, 0)], quiet.loc[defence, (split, 4)]
            cells.append(f"{100 * (plain - prepared):+.1f}")
        lines.append(f"| `{defence}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_map(path: Path, values: pd.DataFrame, title: str) -> None:
    """Defences by columns, accuracy in percent in each field."""
    figure = new_figure(1.6 + 0.95 * values.shape[1], 1.0 + 0.34 * len(values))
    axes = figure.add_subplot()
    shown = 100 * values.to_numpy(dtype=float)
    axes.imshow(shown, cmap="viridis", aspect="auto", vmin=50, vmax=100)
    for (row, column), value in np.ndenumerate(shown):
        text = "–" if np.isnan(value) else f"{value:.1f}"
        colour = "white" if value < 80 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(values.shape[1]), [str(c) for c in values.columns], fontsize=8)
    axes.set_yticks(range(len(values)), list(values.index), fontsize=8)
    axes.set_title(title, fontsize=10)
    save_figure(figure, path)


def maps(table: pd.DataFrame) -> list[str]:
    """A map of defences by attacks for each split, under the most malicious clients."""
    drawn = []
    order = worst(table).mean(axis=1).sort_values(ascending=False).index
    most = int(table["f"].max())
    for key, split in SPLITS.items():
        part = table[(table["split"] == split) & (table["f"] == most)]
        if part.empty:
            continue
        means = part.groupby(["defence", "attack"], sort=False)["accuracy"].mean().unstack("attack")
        means = means.reindex(order)
        attacks = [name for name in means.columns if name != "none"]
        means["worst"] = means[attacks].min(axis=1)
        name = f"{key}.png"
        title = f"accuracy in %, {most} of {CLIENTS} clients malicious, {split}"
        draw_map(SHOWN / name, means[["none", *attacks, "worst"]], title)
        drawn.append(name)
    return drawn


def main() -> None:
    table = read(sys.argv[1:])
    drawn = maps(table)
    runs, seeds = len(table), table["seed"].nunique()
    hours = table["seconds"].sum() / 3600
    plain = calm(table).loc["mean"]
    reached = ", ".join(
        f"{in_percent(plain[(s, 0)])} % ({s})" for s in SPLITS.values() if (s, 0) in plain
    )
    text = "\n\n".join(
        [
            summary_table(table),
            *(f"![Accuracy by defence and attack](robustness/{name})" for name in drawn),
            f"{runs} runs of {seeds} seeds, {hours:.1f} hours of rounds on one core; the mean "
            f"without malicious clients reaches {reached}.",
        ]
    )
    before, _, rest = PAGE.read_text("utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", "utf-8")
    records = table.round({"seconds": 2}).to_dict(orient="records")
    (SHOWN / "runs.json").write_text(json.dumps(records).replace("}, {", "},\n{") + "\n", "utf-8")


if __name__ == "__main__":
    main()
