"""Time and memory of each aggregation rule against a plain mean over the same tensors.

.venv/bin/python scripts/bench_rules.py [--device cuda] [--most 1e9]    # minutes on 2 CPU cores

n updates of d numbers in float32, n · d at most `--most`. Medians of three runs after one to
warm up; *Gram* is one X · Xᵀ in float64, which all distance rules share in a round. Writes
docs/benchmarks/rules.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fedtune.cohort.sizing import forget_peak_memory, held_memory, peak_memory
from fedtune.rules import PRE, RULES, Updates, make_pre, make_rule

OUT = Path(__file__).parent.parent / "docs" / "benchmarks" / "rules.md"
COUNTS, SIZES = (10, 100, 1000), (10**4, 10**5, 10**6, 10**7)
LEFT_OUT = {"mean", "fltrust"}
MOST_MDA = 100
REPEATS, ENOUGH = 3, 4.0
Cost = tuple[float, float]


def cost(work: Callable[[], object], device: torch.device) -> Cost:
    """Median seconds of a few runs (of one, if that takes long), and bytes at the first's peak."""
    held = held_memory(device)
    forget_peak_memory(device)
    first = _timed(work, device)
    memory = max(0.0, float(peak_memory(device) - held))
    found: list[float] = []
    while len(found) < REPEATS and sum(found) + first < ENOUGH:
        found.append(_timed(work, device))
    return statistics.median(found or [first]), memory


def _timed(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(n: int, d: int, device: torch.device) -> dict[str, Cost]:
    """Seconds and bytes of every rule on n updates of d numbers."""
    generator = torch.Generator(device=device).manual_seed(0)
    rows = torch.randn(n, d, device=device, generator=generator)
    weights = torch.full((n,), 1.0 / n, dtype=torch.float64)
    f = max(1, n // 10)

    def fresh() -> Updates:
        return Updates(rows, weights, range(n))

    def spent(work: Callable[[], object]) -> Cost:
        return cost(work, device)

    found = {
        "mean": spent(lambda: make_rule("mean")(fresh())),
        "Gram": spent(lambda: fresh().centred),
    }
    for name in RULES:
        if name in LEFT_OUT or (name == "mda" and n > MOST_MDA):
            continue
        rule = make_rule(name, min(f, 8) if name == "mda" else f)
        found[name] = spent(lambda rule=rule: rule(fresh()))
    for name in PRE:
        rule, pre = make_rule("multi-krum", f), make_pre(name, f)
        found[f"{name} + multi-krum"] = spent(lambda rule=rule, pre=pre: rule(pre(fresh())))
    return found


def _table(titles: list[str], cells: list[list[str]], names: list[str]) -> list[str]:
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    return lines + [
        f"| {name} | {' | '.join(row)} |" for name, row in zip(names, cells, strict=True)
    ]


def _speed(column: dict[str, Cost], name: str) -> str:
    if name not in column:
        return "–"
    value, base, gram = column[name][0], column["mean"][0], column["Gram"][0]
    return (
        f"{value * 1e3:.2f} ms" if name == "mean" else f"{value / base:.1f} × ({value / gram:.1f})"
    )


def _space(column: dict[str, Cost], name: str, held: int) -> str:
    return f"{column[name][1] / held:.2f}" if name in column else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--most", type=float, default=1e9)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    shapes = [(n, d) for n in COUNTS for d in SIZES if n * d <= arguments.most]
    columns = {}
    for n, d in shapes:
        columns[n, d] = measure(n, d, device)
        print(
            n,
            d,
            {name: f"{time_ * 1e3:.1f} ms" for name, (time_, _) in columns[n, d].items()},
            flush=True,
        )
    names = list(columns[shapes[0]])
    titles = [f"{n} × {d:.0e}".replace("e+0", "e") for n, d in shapes]
    lines = [
        *_table(
            titles, [[_speed(columns[shape], name) for shape in shapes] for name in names], names
        )
    ]
    lines += ["", "Memory at the peak beyond the updates themselves, × the updates:", ""]
    cells = [[_space(columns[n, d], name, 4 * n * d) for n, d in shapes] for name in names]
    lines += _table(titles, cells, names)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "2 shared CPU cores"
    head = (
        f"`scripts/bench_rules.py --most {arguments.most:g}` on {where}, torch "
        f"{torch.__version__}. n × d; × the plain mean, and in brackets × one Gram product.\n\n"
    )
    OUT.write_text(head + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
