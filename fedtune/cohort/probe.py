"""Whether a model may train in cohorts: two clients together against PEFT one by one.

Anything that couples the examples of a batch, or that gives a trained layer rows that are not
client by client, changes a gradient here; the model then trains on the sequential backend.
"""

from __future__ import annotations

import torch

from fedtune.adapters.layout import Tensors
from fedtune.cohort.backend import Backend, Setting
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.plan import ClientWork
from fedtune.cohort.stacked import NotStackableError
from fedtune.cohort.together import CohortBackend
from fedtune.randomness import key_of, uniform
from fedtune.tasks.base import Rows

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2}
_ROWS = 4


def choose_backend(setting: Setting, kind: str, rows: Rows) -> tuple[Backend, str | None]:
    """The backend that the scenario asks for, or `sequential` where cohorts would be wrong.

    Args:
        kind: `cohort` or `sequential`.
        rows: a few rows of the data to try on, at least two.

    Returns:
        The backend and, where it is not the one asked for, the reason.
    """
    if kind == "sequential" or len(rows) < 2:
        return SequentialBackend(setting), None
    works = _two_clients(setting, rows)
    reference = SequentialBackend(setting)
    alone = reference.gradient(works)
    try:
        backend = CohortBackend(setting)
    except NotStackableError as error:
        return reference, f"{error}, which has no stacked form"
    try:
        together = backend.gradient(works)
    except (RuntimeError, ValueError) as error:
        backend.close()
        return reference, f"two clients cannot be folded into its batch ({str(error)[:80]})"
    gap = float((together - alone).norm() / alone.norm().clamp_min(1e-30))
    if gap <= TOLERANCE[setting.dtype]:
        return backend, None
    backend.close()
    return reference, f"two clients trained together differ from one by one by {gap:.1e}"


def _two_clients(setting: Setting, rows: Rows) -> list[ClientWork]:
    half = max(1, min(len(rows) // 2, _ROWS))
    batches = [rows[:half], rows[half : 2 * half - 1] if half > 1 else rows[half : 2 * half]]
    return [
        ClientWork(k, _stirred(setting, k), ((batch,),), (1,), key_of("probe", k), len(batch))
        for k, batch in enumerate(batches)
    ]


def _stirred(setting: Setting, client: int) -> Tensors:
    """Initial tensors plus noise, so that no gradient is zero because B is."""
    return {
        spec.name: setting.adapted.initial[spec.name].to(setting.device, setting.master)
        + 0.1 * (uniform(key_of("probe", client, spec.name), spec.shape) - 0.5).to(setting.device)
        for spec in setting.layout.trained
    }
