"""What `fedtune doctor` finds: versions, devices, what is missing for what."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch

from fedtune.runs.threads import free_cores, own_threads
from fedtune.waiting import described

REQUIRED = ("fedtune", "flwr", "flwr-datasets", "numpy", "peft", "torch", "transformers")
OPTIONAL = {
    "ray": "engine.kind = 'flower'; pip install 'fedtune[flower]'",
    "mlflow-skinny": "run.trackers = ['mlflow']; pip install 'fedtune[mlflow]'",
    "wandb": "run.trackers = ['wandb']; pip install 'fedtune[wandb]'",
    "torchvision": "faster image processing; Pillow serves without it",
}


def examine() -> dict[str, dict[str, str]]:
    """Sections of names and findings."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) or "MISSING: pip install fedtune" for name in REQUIRED},
        },
        "optional": {name: _version(name) or f"absent ({use})" for name, use in OPTIONAL.items()},
        "devices": {"cpu": _cpu(), **_gpus()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    memory = psutil.virtual_memory().total / 2**30
    cores = f"{os.cpu_count()} cores, {free_cores()} free now"
    return f"{cores}, at most {own_threads()} torch threads, {memory:.0f} GiB; {described()}"


def _gpus() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {"cuda": "absent (engine.device = 'cpu' is used)"}
    found = {}
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    return found
