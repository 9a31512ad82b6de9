"""How many clients fit into a cohort: measured on one client's first step."""

from __future__ import annotations

import gc
import resource
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from fedtune.cohort.checkpointing import checkpointed_layers, keeping
from fedtune.cohort.plan import ClientWork
from fedtune.cohort.together import CohortBackend

MEMORY_SHARE = 0.5
MATRICES = 6
CACHE_BYTES = 48 << 20


def fitting_size(backend: CohortBackend, work: ClientWork) -> int:
    """The largest cohort whose training fits into half of the device's memory.

    On a CPU a cohort that overflows the last-level cache trains slower than two smaller ones, so
    there the activations of a step are also kept near `CACHE_BYTES`. Both bounds are pure
    functions of the machine, the model and the work: the same run measures the same size again.
    """
    need = client_bytes(backend, work)
    device = backend.setting.device
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory * MEMORY_SHARE
        return max(1, int(room // need))
    room = psutil.virtual_memory().total * MEMORY_SHARE
    return max(1, int(min(room, CACHE_BYTES) // need))


def client_bytes(backend: CohortBackend, work: ClientWork) -> int:
    """Bytes that one client adds: saved activations of a step, and its rows of all matrices."""
    widths = backend.setting.data.widths
    private = work.noise is not None
    steps = [(np.concatenate(step),) if private and step else step for step in work.steps]
    batches = [batch for step in steps for batch in step]
    matrices = MATRICES * backend.setting.layout.width * backend.setting.master.itemsize
    if not batches:
        return matrices
    largest = max(batches, key=lambda batch: len(batch) * int(widths(batch).max()))
    one_batch = replace(work, steps=((largest,),), epoch_ends=(1,), noise=None)
    layers = checkpointed_layers(backend.model)
    kept = [keeping(layer) for layer in layers] if layers else [nullcontext()]
    saved = max(_saved_bytes(backend, one_batch, layer) for layer in kept)
    if private:  # gradients of single examples
        matrices += len(largest) * matrices // MATRICES
    return saved + matrices


def _saved_bytes(
    backend: CohortBackend, work: ClientWork, kept: AbstractContextManager[None]
) -> int:
    """Bytes that autograd saves for a client's first step, with a layer's activations kept."""
    base = {p.untyped_storage().data_ptr() for p in backend.model.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in base:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with kept, hooks:
        backend.gradient([work], 0)
    return sum(seen.values())


def peak_memory(device: torch.device) -> int:
    """Most bytes held at once: allocated on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak_memory(device: torch.device) -> None:
    """Begin to count `peak_memory` anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def held_memory(device: torch.device) -> int:
    """Bytes held now: allocated on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device's memory is full; on a CPU torch has no type."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def release(device: torch.device) -> None:
    """Give memory back after an out-of-memory error."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
