"""Attention on a CPU: torch's fused kernel against plain products, forward and backward.

.venv/bin/python scripts/bench_attention.py  # a table: seconds fused over those of products, and
                                             # the same where a mask leaves out padding
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fedtune.tasks.attention import products

TOKENS, WIDTHS, ROWS, REPEATS = (8, 16, 17, 32, 48, 64, 96, 128), (16, 32, 64), 2**13, 9


def seconds(attend: Callable[..., Tensor], tokens: int, width: int, masked: bool) -> float:
    """Of one forward and backward pass over so many rows in heads of that width; median."""
    heads = [
        torch.randn(ROWS // tokens, tokens, 4, width).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]
    lengths = torch.randint(1, tokens + 1, (ROWS // tokens, 1, 1, 1))
    seen = (torch.arange(tokens) < lengths).expand(-1, 1, tokens, -1) if masked else None
    slope, found = torch.randn(ROWS // tokens, tokens, 4 * width), []
    for _ in range(REPEATS):
        began = time.perf_counter()
        attend(*heads, seen).transpose(1, 2).reshape(slope.shape).backward(slope)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def ratio(tokens: int, width: int, masked: bool) -> float:
    """Seconds of torch's kernel over those of products."""
    fused = seconds(scaled_dot_product_attention, tokens, width, masked)
    return fused / seconds(products, tokens, width, masked)


def main() -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    sys.stdout.write(f"| tokens | {' | '.join(f'heads of {w}' for w in WIDTHS)} |\n")
    sys.stdout.write("|---" * (len(WIDTHS) + 1) + "|\n")
    for tokens in TOKENS:
        cells = [f"{ratio(tokens, w, False):.2f}, {ratio(tokens, w, True):.2f}" for w in WIDTHS]
        sys.stdout.write(f"| {tokens} | {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
