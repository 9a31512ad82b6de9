"""Cohort against sequential, side by side in one run: client updates per second and peak memory.

One frozen BERT encoder with random weights (speed does not depend on what they hold), LoRA r = 8 on
query and value with dropout 0.1, a trained head, AdamW, 4 local steps a client. Both backends use
the same loaded base, precision, attention kernel and dropout; they are timed in turn within each
repeat, after a warm-up. A round has `clients` clients and engine.cohort_size is that number;
`together` is how many of them the engine then trains in one pass (never more than fit into memory
and, on a CPU, into cache). Writes JSON, a table in Markdown and a curve.

    scripts/bench_engines                                     # about 15 minutes on 2 CPU cores
    scripts/bench_engines --widths 128 --batches 8 --clients 32
    scripts/bench_engines --device cuda --precision bfloat16 --encoder base --peak-tflops 989
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from fedtune.adapters.wrap import PretrainedBase, wrap
from fedtune.cohort.backend import Setting
from fedtune.cohort.engine import Engine, Resolved
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.plan import ClientWork, plan_work
from fedtune.cohort.sizing import client_bytes, fitting_size, peak_memory
from fedtune.cohort.together import CohortBackend
from fedtune.reporting.figure import INK, new_figure, save_figure
from fedtune.scenario.adapter import AdapterSection
from fedtune.scenario.local import LocalSection
from fedtune.tasks.base import Classification, Table

STEPS, CLASSES, VOCABULARY = 4, 10, 2000
COLOURS = ("#2563eb", "#d97706", "#059669")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OUT = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True)
class Shape:
    """One workload."""

    width: int
    layers: int
    batch: int
    tokens: int


def make_setting(shape: Shape, device: str, precision: str) -> Setting:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=max(2, shape.width // 64), intermediate_size=4 * shape.width,
        num_labels=CLASSES,
    )  # fmt: skip
    base = BertForSequenceClassification(config)
    fresh = frozenset(n for n, _ in base.named_parameters() if n.startswith("classifier"))
    where, dtype = torch.device(device), DTYPES[precision]
    adapter = AdapterSection(rank=8, dropout=0.1)
    adapted = wrap(
        PretrainedBase(base, ["classifier"], fresh, "random"),
        adapter,
        "lora",
        "shared",
        0,
        where,
        dtype,
    )
    rows = shape.batch * STEPS
    data = Table(
        {
            "input_ids": torch.randint(1, VOCABULARY, (rows, shape.tokens)),
            "attention_mask": torch.ones(rows, shape.tokens, dtype=torch.int64),
        },
        torch.randint(CLASSES, (rows,)),
    ).to(where, dtype)
    local = LocalSection(steps=STEPS, batch_size=shape.batch, lr=1e-3)
    return Setting(adapted, Classification(), data, local, 1, where, dtype)


def make_works(setting: Setting, count: int) -> list[ClientWork]:
    state = {s.name: setting.adapted.initial[s.name] for s in setting.layout.trained}
    rows = np.arange(len(setting.data))
    return [plan_work(k, 1, rows, state, setting.local, 0) for k in range(count)]


def make_engine(backend: CohortBackend, size: int) -> Engine:
    device = str(backend.setting.device)
    return Engine(backend, backend.setting, Resolved(backend.name, device, 1), size)


def seconds(work: Any, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(shape: Shape, counts: list[int], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Client updates per second of both backends for each cohort size, in turn."""
    device, precision = arguments.device, arguments.precision
    plain = SequentialBackend(make_setting(shape, device, precision))
    cohort = CohortBackend(make_setting(shape, device, precision))
    works = make_works(cohort.setting, max(counts))
    auto = fitting_size(cohort, works[0])
    alone = works[: arguments.alone]
    sizes = sorted({*counts, min(auto, max(counts))})
    engines = {size: make_engine(cohort, size) for size in sizes}
    times: dict[Any, list[float]] = {"sequential": [], **{size: [] for size in sizes}}
    for repeat in range(arguments.repeats + 1):
        spent = seconds(lambda: plain.train(alone, 1), device) / len(alone)
        for name in times:
            if name != "sequential":
                train = partial(engines[name].train, works[:name], 1)
                spent_here = seconds(train, device) / name
                if repeat:
                    times[name].append(spent_here)
        if repeat:
            times["sequential"].append(spent)
    base = statistics.median(times["sequential"])
    flops = count_flops(cohort, works[0])
    rows = []
    for size in sizes:
        ratios = [s / c for s, c in zip(times["sequential"], times[size], strict=True)]
        middle = statistics.median(times[size])
        row = {
            **shape.__dict__, "clients": size, "auto": size == auto,
            "together": engines[size].resolved.size(1),
            "sequential_per_s": 1 / base, "cohort_per_s": 1 / middle,
            "ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios),
        }  # fmt: skip
        if arguments.peak_tflops:
            row["share_of_peak"] = flops / middle / (arguments.peak_tflops * 1e12)
        rows.append(row)
        print(describe(row), flush=True)
    return rows


def describe(row: dict[str, Any]) -> str:
    chosen = "*" if row["auto"] else " "
    return (
        f"hidden {row['width']:4} batch {row['batch']:3} clients {row['clients']:4}{chosen} "
        f"together {row['together']:4} "
        f"sequential {row['sequential_per_s']:8.1f}/s cohort {row['cohort_per_s']:8.1f}/s "
        f"ratio {row['ratio']:5.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
    )


def count_flops(backend: CohortBackend, work: ClientWork) -> float:
    with FlopCounterMode(display=False) as counter:
        backend.train([work], 1)
    return float(counter.get_total_flops())


def memory_child(count: int, shape: Shape, arguments: argparse.Namespace) -> None:
    """In a process of its own: memory with the base loaded, and its peak while a cohort trains."""
    setting = make_setting(shape, arguments.device, arguments.precision)
    backend = CohortBackend(setting)
    works = make_works(setting, count)
    one = client_bytes(backend, works[0])
    base = peak_memory(setting.device)
    backend.train(works, 1)
    print(
        json.dumps(
            {"clients": count, "base": base, "peak": peak_memory(setting.device), "one": one}
        )
    )


def memory(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for count in arguments.memory_clients:
        command = [
            sys.executable,
            __file__,
            "--memory-child",
            str(count),
            "--device",
            arguments.device,
        ]
        out = subprocess.run(
            [*command, "--precision", arguments.precision],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        row = json.loads(out.strip().splitlines()[-1])
        row["bound"] = row["base"] + 2 * count * row["one"]
        row["within"] = row["peak"] <= row["bound"]
        found.append(row)
        mib = {key: f"{row[key] / 2**20:8.0f} MiB" for key in ("base", "peak", "bound")}
        print(f"memory, {count:4} clients: {mib}", flush=True)
    return found


def curve(rows: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    return [r["clients"] for r in rows], [r["ratio"] for r in rows]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    widths = sorted({row["width"] for row in rows})
    figure = new_figure(3.6 * len(widths), 3.4)
    colours = dict(zip(sorted({r["batch"] for r in rows}), COLOURS, strict=False))
    for index, width in enumerate(widths):
        axes = figure.add_subplot(1, len(widths), index + 1)
        for batch, colour in colours.items():
            line = [r for r in rows if (r["width"], r["batch"]) == (width, batch)]
            chosen = [r for r in line if r["auto"]]
            style = {"color": colour, "markerfacecolor": "none"}
            axes.plot(*curve(line), "o-", markersize=3, label=f"batch {batch}", color=colour)
            axes.plot(*curve(chosen), "s", markersize=8, **style)
        axes.axhline(1, color=INK, linewidth=0.8)
        axes.axhline(1.2, color=INK, linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlabel("clients in a cohort")
        axes.set_title(f"hidden size {width}", fontsize=10)
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    figure.axes[0].set_ylabel("cohort / sequential, client updates per second")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(
        "Where cohorts gain, and where the gain ends (squares: what 'auto' chooses; dots: 1.2×)",
        fontsize=10,
    )
    save_figure(figure, path)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| hidden | batch | clients | together | sequential /s | cohort /s | ratio | spread |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        size = f"**{r['clients']}** (auto)" if r["auto"] else str(r["clients"])
        lines.append(
            f"| {r['width']} | {r['batch']} | {size} | {r['together']} "
            f"| {r['sequential_per_s']:.1f} "
            f"| {r['cohort_per_s']:.1f} | {r['ratio']:.2f} "
            f"| {r['ratio_low']:.2f}–{r['ratio_high']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 384])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 32, 128])
    parser.add_argument("--memory-clients", type=int, nargs="*", default=[1, 16, 64, 256])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument(
        "--encoder",
        choices=["small", "base"],
        default="small",
        help="base: 12 layers of 768, 128 tokens",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=list(DTYPES), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--alone", type=int, default=4, help="clients timed on the sequential backend"
    )
    parser.add_argument(
        "--peak-tflops", type=float, help="the card's peak, to give the share reached"
    )
    parser.add_argument("--out", type=Path, default=OUT / "benchmarks")
    parser.add_argument("--memory-child", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.memory_child:
        memory_child(arguments.memory_child, Shape(128, 2, 8, 16), arguments)
        return
    shapes = [
        Shape(w, arguments.layers, b, arguments.tokens)
        for w in arguments.widths
        for b in arguments.batches
    ]
    if arguments.encoder == "base":
        shapes = [Shape(768, 12, b, 128) for b in arguments.batches]
    rows = [row for shape in shapes for row in measure(shape, arguments.clients, arguments)]
    on_gpu = arguments.device != "cpu"
    found = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": arguments.precision,
        "command": "scripts/bench_engines " + " ".join(sys.argv[1:]),
        "speed": rows,
        "memory": memory(arguments) if arguments.encoder == "small" else [],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "engines.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "engines.md").write_text(table(rows))
    draw(rows, arguments.out / "engines.png")


if __name__ == "__main__":
    main()
