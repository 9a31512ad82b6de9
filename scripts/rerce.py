"""The curves of docs/methods/rerce.md: least squares over noisy links, and adapters beside FedAvg.

.venv/bin/python scripts/rerce.py        # a quarter of an hour on 2 CPU cores; resumable
"""

from __future__ import annotations

import json
from pathlib import Path

import fedtune
from fedtune.comparison.progress import ConsoleGrid
from fedtune.reporting.figure import new_figure, save_figure
from fedtune.runs.directory import RunDirectory

ROOT = Path(__file__).parent.parent
SHOWN = ROOT / "docs" / "methods"
ROUNDS = {"run.rounds": 100}
QUIET = {"faults.noise_up": 0.0, "faults.noise_down": 0.0}
FEW = {"clients.participation.value": 0.04, "strategy.rho": 0.004}
SQUARES = {
    "all clients, no noise": QUIET,
    "all clients, noise": {},
    "4 of 100, noise, ρ = 0.004": FEW,
    "4 of 100, noise, ρ = 0.004, continual": {**FEW, "strategy.continual": True},
}


def least_squares() -> dict[str, list[tuple[int, float]]]:
    """NMSD by round of each variant."""
    found = {}
    for number, (name, overrides) in enumerate(SQUARES.items()):
        path = ROOT / "runs" / "rerce" / str(number)
        if not (path / "summary.json").is_file():
            fedtune.run("rerce", {**ROUNDS, **overrides}, path)
        lines = RunDirectory(path).metrics
        found[name] = [(line["round"], line["eval"]["nmsd"]) for line in lines if line["eval"]]
        print(name, found[name][-1], min(found[name], key=lambda look: look[1]), flush=True)
    return found


def adapters() -> dict[str, list[tuple[int, float]]]:
    """Mean accuracy by round of each family of `rerce-adapters`."""
    grid = ConsoleGrid()
    try:
        done = fedtune.compare("rerce-adapters", out=ROOT / "runs/compare/rerce", observer=grid)
    finally:
        grid.close()
    found = {}
    for family in done.record["families"]:
        noise = family["over"]["faults"]["noise_up"]
        name = f"{family['over']['strategy.name']}, {'noise' if noise else 'no noise'}"
        looks: dict[int, list[float]] = {}
        for cell in family["cells"]:
            for line in RunDirectory(done.path / cell["directory"]).metrics:
                if line["eval"]:
                    looks.setdefault(line["round"], []).append(line["eval"]["accuracy"])
        found[name] = [(r, sum(values) / len(values)) for r, values in sorted(looks.items())]
    return found


def main() -> None:
    squares, classes = least_squares(), adapters()
    figure = new_figure(10, 3.6)
    panels = [(squares, "NMSD in dB", "least squares, N = 100, P = 128"),
              (classes, "accuracy", "adapters on digits, 20 clients")]  # fmt: skip
    for index, (curves, label, title) in enumerate(panels):
        axes = figure.add_subplot(1, 2, index + 1)
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.6)
        axes.set_xlabel("round")
        axes.set_ylabel(label)
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    save_figure(figure, SHOWN / "rerce.png")
    record = {"least-squares": squares, "adapters": classes}
    (SHOWN / "rerce.json").write_text(json.dumps(record).replace("]], ", "]],\n") + "\n", "utf-8")


if __name__ == "__main__":
    main()
