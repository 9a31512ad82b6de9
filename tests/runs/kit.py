"""Small runs of the real thing: builtin model, builtin data, seconds each."""

from __future__ import annotations

SMALL = {
    "task.test_examples": 120,
    "clients.count": 6,
    "clients.participation.value": 0.5,
    "clients.partition": {"kind": "dirichlet", "alpha": 1.0},
    "local.steps": 2,
    "local.batch_size": 4,
    "adapter.rank": 2,
    "run.rounds": 2,
    "engine.cohort_size": 2,
    "engine.threads": 1,
}


def small(**changes) -> dict:
    """Overrides of the default scenario; `run__rounds=3` sets run.rounds."""
    return {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}


def lines(directory) -> list[dict]:
    """The metrics without the fields of time."""
    return [
        {k: v for k, v in line.items() if not k.startswith("seconds")} for line in directory.metrics
    ]


def adapter_bytes(directory) -> dict[str, bytes]:
    """The files of the adapter."""
    return {file.name: file.read_bytes() for file in sorted(directory.adapter.iterdir())}
