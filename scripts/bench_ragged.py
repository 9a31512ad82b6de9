"""Cohorts whose clients have batches of different sizes: padding against grouped products.

One adapter layer, y = W·x + s·B_k·A_k·x, forward and backward, over K clients whose batches hold
between (2 · share - 1) · b and b examples, share · b in the mean. *Padded* is what the engine does:
batches are filled up to the largest, and A and B meet them in batched products. *Grouped* lets only
real examples through the base layer, and A and B meet them by `torch.nn.functional.grouped_mm`.
Both give the same numbers. Seconds padded over seconds grouped: above 1, grouping pays.

    .venv/bin/python scripts/bench_ragged.py                 # --device cuda --precision bfloat16
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTHS, SHARES = (64, 128, 384, 768), (1.0, 0.9, 0.75, 0.5)
CLIENTS, BATCH, TOKENS, RANK, REPEATS = 32, 8, 16, 8, 15


def sizes_of(share: float) -> list[int]:
    """The batch sizes of all clients, evenly spread."""
    least = (2 * share - 1) * BATCH
    spread = torch.linspace(least, BATCH, CLIENTS).round().int().tolist()
    return [max(1, size) for size in spread]


def padded(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x: (K, b · tokens, d); a: (K, d, r); b: (K, r, d)."""
    return torch.baddbmm(F.linear(x, weight), torch.bmm(x, a), b)


def grouped(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """x: (real examples · tokens, d), client by client, whose rows end at ends, (K,)."""
    return F.linear(x, weight) + F.grouped_mm(F.grouped_mm(x, a, offs=ends), b, offs=ends)


def seconds(step: Callable[[], Tensor], slope: Tensor, device: torch.device) -> float:
    """Of forward and backward; median."""
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        step().backward(slope)
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[2:])


def ratio(width: int, share: float, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds padded over seconds grouped."""
    sizes = sizes_of(share)
    made = {"device": device, "dtype": dtype}
    weight = torch.randn(width, width, **made)
    a = torch.randn(CLIENTS, width, RANK, **made).requires_grad_()
    b = torch.randn(CLIENTS, RANK, width, **made).requires_grad_()
    full = torch.randn(CLIENTS, BATCH, TOKENS, width, **made)
    real = torch.cat([full[k, :size] for k, size in enumerate(sizes)]).flatten(0, 1)
    full, real = full.flatten(1, 2).requires_grad_(), real.requires_grad_()
    rows = torch.tensor(sizes, device=device) * TOKENS
    ends = rows.cumsum(0).int()
    everywhere = padded(full, weight, a, b).detach()
    wanted = torch.cat([everywhere[k, : size * TOKENS] for k, size in enumerate(sizes)])
    torch.testing.assert_close(grouped(real, weight, a, b, ends), wanted, rtol=2e-2, atol=2e-2)
    fill = seconds(lambda: padded(full, weight, a, b), torch.randn_like(full), device)
    group = seconds(lambda: grouped(real, weight, a, b, ends), torch.randn_like(real), device)
    return fill / group


def main() -> None:
    """Print a table: a row a width, a column a share of real examples."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    asked = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    dtype = getattr(torch, asked.precision)
    sys.stdout.write(f"| width | {' | '.join(f'{s:.0%} real' for s in SHARES)} |\n")
    sys.stdout.write("|---" * (len(SHARES) + 1) + "|\n")
    for width in WIDTHS:
        ratios = [ratio(width, share, asked.device, dtype) for share in SHARES]
        sys.stdout.write(f"| {width} | {' | '.join(f'{r:.2f}' for r in ratios)} |\n")


if __name__ == "__main__":
    main()
