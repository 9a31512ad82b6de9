"""What byzfl's aggregators give on fixed updates, for tests/rules/test_byzfl.py.

byzfl (MIT) wants torchvision and seaborn, which its aggregators do not use:

    .venv/bin/pip install --no-deps --target /tmp/byzfl byzfl==0.0.11
    .venv/bin/python scripts/byzfl_vectors.py /tmp/byzfl
"""

from __future__ import annotations

import json
import sys
import types
from importlib import import_module
from pathlib import Path

import numpy as np

OUT = Path(__file__).parent.parent / "tests" / "rules" / "byzfl.json"
N, D, F, SEEDS = 11, 6, 2, 5


def updates(seed: int) -> np.ndarray:
    """Honest updates around a mean, and F that are far away."""
    random = np.random.default_rng(seed)
    rows = random.normal(0.5, 1.0, size=(N, D))
    rows[:F] = random.normal(-8.0, 3.0, size=(F, D))
    return rows


def main() -> None:
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder))
    for name in ("byzfl", "byzfl.aggregators", "byzfl.utils"):  # without their __init__
        stub = types.ModuleType(name)
        stub.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = stub
    rules = import_module("byzfl.aggregators.aggregators")
    pre = import_module("byzfl.aggregators.preaggregators")
    makers = {
        "mean": lambda: rules.Average(),
        "median": lambda: rules.Median(),
        "trimmed-mean": lambda: rules.TrMean(f=F),
        "krum": lambda: rules.Krum(f=F),
        "multi-krum": lambda: rules.MultiKrum(f=F),
        "geometric-median": lambda: rules.GeometricMedian(nu=1e-9, T=5000),
        "geometric-median as shipped": lambda: rules.GeometricMedian(),
        "meamed": lambda: rules.Meamed(f=F),
        "mda": lambda: rules.MDA(f=F),
        "nnm": lambda: pre.NNM(f=F),
        "arc": lambda: pre.ARC(f=F),
        "clip": lambda: pre.Clipping(c=2.0),
    }
    found = []
    for seed in range(SEEDS):
        rows = updates(seed)
        results = {name: np.asarray(make()(rows.copy())).tolist() for name, make in makers.items()}
        found.append({"f": F, "updates": rows.tolist(), "results": results})
    OUT.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
