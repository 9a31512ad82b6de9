"""A model of a round's time, fitted to docs/benchmarks/engines.json, and large runs on paper.

A client's seconds = steps · (a / together + b) + FLOP / c: what a step of a cohort costs whatever
is in it (Python, dispatch), what each client costs in a step (its rows, its optimiser), and
arithmetic at c FLOP a second, of which the frozen base takes 4 per parameter of its matrices and
token (forward, and backward through activations alone). a, b and 1/c are fitted without negative
values, relative errors squared. One width is held out and predicted.

The table of large runs is arithmetic on top of sizes that are exact, of what one process here needs
to check replies, make the rule's matrix of them and average it (timed now), and of figures that
were NOT measured, since no GPU was at hand: the share of a card's peak, a on a GPU, the network.

    .venv/bin/python scripts/scale_model.py                # prints docs/scale.md's tables
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from fedtune.rules.flat import are_finite, differences, flat
from fedtune.workers.packing import pack, unpack

FIGURES = Path(__file__).parent.parent / "docs" / "benchmarks" / "engines.json"
STEPS, HELD_OUT = 4, 128
MESSAGE = 3e-4  # seconds a client beside training and numbers: docs/benchmarks/scale.json
MIB, GIB = 2**20, 2**30


def flop(row: dict[str, Any]) -> float:
    """Of one client's round: 12 · width² parameters a layer, 4 FLOP each a token, and attention."""
    tokens = row["batch"] * row["tokens"] * STEPS
    matrices = 12 * row["width"] ** 2 * row["layers"]
    attention = 8 * row["layers"] * row["width"] * row["tokens"]
    return float(tokens * (4 * matrices + attention))


def features(row: dict[str, Any]) -> list[float]:
    """What a, b and 1/c are multiplied by."""
    return [STEPS / row["together"], STEPS, flop(row)]


def fit(rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """a, b (seconds) and 1/c (seconds a FLOP)."""
    seconds = np.asarray([1.0 / row["cohort_per_s"] for row in rows])
    x = np.asarray([features(row) for row in rows]) / seconds[:, None]
    scale = x.max(0)
    found, _ = nnls(x / scale, np.ones(len(rows)))
    return found / scale


def errors(rows: list[dict[str, Any]], found: np.ndarray[Any, Any]) -> list[float]:
    """Predicted over measured seconds, less one."""
    return [float(np.dot(features(r), found)) * r["cohort_per_s"] - 1.0 for r in rows]


def fitted(rows: list[dict[str, Any]]) -> str:
    """The fit and how far off it is, as Markdown."""
    kept = [row for row in rows if row["width"] != HELD_OUT]
    held = [row for row in rows if row["width"] == HELD_OUT]
    found = fit(kept)
    lines = [
        f"a = {found[0] * 1e3:.2f} ms, b = {found[1] * 1e3:.2f} ms, c = {1 / found[2] / 1e9:.0f} "
        f"GFLOP/s, from {len(kept)} measurements.",
        "",
        "| measurements | median error | nine tenths within | greatest |",
        "|---|---|---|---|",
    ]
    for name, some in (("fitted (widths 64, 384)", kept), (f"held out (width {HELD_OUT})", held)):
        off = sorted(abs(e) for e in errors(some, found))
        tenth = off[int(0.9 * (len(off) - 1))]
        lines.append(f"| {name}, {len(some)} | {statistics.median(off):.0%} | {tenth:.0%} "
                     f"| {off[-1]:.0%} |")  # fmt: skip
    return "\n".join(lines)


def server_seconds(numbers: int = 1 << 22, clients: int = 16, repeats: int = 7) -> float:
    """Seconds a GiB of replies: packed, unpacked, checked, one n × d matrix, its mean; median."""
    sent = {"all": torch.zeros(numbers)}
    replies = [{"all": torch.randn(numbers)} for _ in range(clients)]
    weights, first = torch.full((clients,), 1.0 / clients), flat(sent)
    took = []
    for _ in range(repeats):
        started = time.perf_counter()
        came = [unpack(pack(reply), [], torch.device("cpu")) for reply in replies]
        assert all(are_finite([flat(one) - first]) for one in came)
        weights @ differences(came, sent)
        took.append(time.perf_counter() - started)
    return statistics.median(took) / (clients * numbers * 4 / GIB)


def on_paper(asked: argparse.Namespace) -> str:
    """Memory, traffic and time of a large run, as Markdown."""
    width, layers, parameters = asked.width, asked.layers, asked.parameters
    trained = layers * 2 * 2 * width * asked.rank
    tokens = asked.examples * asked.tokens
    work = tokens * (4 * parameters + 8 * layers * width * asked.tokens)
    steps = asked.examples / asked.batch
    kept = asked.batch * asked.tokens * layers * 34 * width
    kept_less = asked.batch * asked.tokens * (layers * 2 + 34) * width
    each = 6 * 4 * trained
    room = 0.5 * asked.memory * GIB - 2 * parameters
    together = max(1, int(room // (kept + each)))
    together_less = max(1, int(room // (kept_less + each)))
    rows = ["| | " + " | ".join(f"{gpus} GPUs" for gpus in asked.gpus) + " |"]
    rows.append("|---|" + "---|" * len(asked.gpus))
    wide = [gpus * asked.share * asked.peak * 1e12 for gpus in asked.gpus]
    arithmetic = [asked.sampled * work / c for c in wide]
    fixed = [asked.sampled * steps * asked.step / together / gpus for gpus in asked.gpus]
    upload = asked.sampled * 4 * trained
    rate = server_seconds()
    messages, network = asked.sampled * MESSAGE, upload * 8 / (asked.network * 1e9)
    server = messages + network + rate * upload / GIB
    told = {
        "arithmetic of a round, s": [f"{s:.0f}" for s in arithmetic],
        "cohort steps' fixed cost, s": [f"{s:.1f}" for s in fixed],
        f"messages ({MESSAGE * 1e3:.1f} ms a client, one process), s": [f"{messages:.0f}"]
        * len(wide),
        f"uploads over {asked.network:.0f} Gbit/s, s": [f"{network:.0f}"] * len(wide),
        f"uploads through the server ({rate:.1f} s a GiB), s": [
            f"{rate * upload / GIB:.0f}" for _ in wide
        ],
        "a round, s": [f"{a + f + server:.0f}" for a, f in zip(arithmetic, fixed, strict=True)],
        "1 000 rounds, days": [
            f"{(a + f + server) / 86.4:.1f}" for a, f in zip(arithmetic, fixed, strict=True)
        ],
        "sent to workers a round, GiB": [f"{g * 4 * trained / GIB:.1f}" for g in asked.gpus],
    }
    rows += [f"| {name} | {' | '.join(values)} |" for name, values in told.items()]
    return "\n".join(
        [
            f"Base in bfloat16 {2 * parameters / GIB:.1f} GiB a GPU; adapter "
            f"{trained / 1e6:.1f} M numbers ({4 * trained / MIB:.0f} MiB); a client of a cohort "
            f"{each / MIB:.0f} MiB for its matrices and {kept / GIB:.1f} GiB of activations "
            f"({kept_less / GIB:.2f} with `engine.gradient_checkpointing`), so {together} (or "
            f"{together_less}) clients in one pass in half of {asked.memory} GiB. Uploads of a "
            f"round {upload / GIB:.0f} GiB, held once as replies and once as the rule's n × d "
            f"matrix: {2 * upload / GIB:.0f} GiB of host memory.",
            "",
            *rows,
        ]
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--parameters", type=float, default=6.6e9, help="of the base's matrices")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sampled", type=int, default=10_000, help="clients a round")
    parser.add_argument("--examples", type=int, default=16, help="of a client")
    parser.add_argument("--tokens", type=int, default=512, help="of an example")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--peak", type=float, default=790.0, help="TFLOP/s of a card, bfloat16")
    parser.add_argument("--memory", type=int, default=139, help="GiB of a card")
    parser.add_argument("--share", type=float, default=0.4, help="of the peak: not measured")
    parser.add_argument("--network", type=float, default=100.0, help="Gbit/s: not measured")
    parser.add_argument("--step", type=float, default=0.05, help="a on a GPU, s: not measured")
    asked = parser.parse_args()
    rows = json.loads(FIGURES.read_text("utf-8"))["speed"]
    sys.stdout.write(f"{fitted(rows)}\n\n{on_paper(asked)}\n")


if __name__ == "__main__":
    main()
