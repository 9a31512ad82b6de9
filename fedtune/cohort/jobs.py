"""What is done with a cohort, or with a batch that is evaluated: functions of a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from fedtune.adapters.layout import Tensors
from fedtune.cohort.backend import Backend
from fedtune.cohort.plan import ClientResult, ClientWork
from fedtune.cohort.sizing import out_of_memory
from fedtune.errors import ClientFailure
from fedtune.tasks.base import Data, Rows

UNITS = "units"
Result = TypeVar("Result")
Job = Callable[[Backend, list[ClientWork], int], Mapping[int, Result]]
Sums = dict[str, float]


def trained(
    backend: Backend, cohort: list[ClientWork], server_round: int
) -> dict[int, ClientResult]:
    """A job: train a cohort."""
    return {result.client: result for result in backend.train(cohort, server_round)}


def first_gradients(
    backend: Backend, cohort: list[ClientWork], server_round: int
) -> dict[int, Tensors]:
    """A job: the gradient of each client's first step."""
    layout = backend.setting.layout.training(cohort[0].only)
    rows = backend.gradient(cohort)
    return {work.client: layout.split(row) for work, row in zip(cohort, rows, strict=True)}


def attempt(
    backend: Backend, cohort: list[ClientWork], server_round: int, job: Job[Result]
) -> dict[int, Result | ClientFailure]:
    """What comes of a cohort; where it fails, of each of its clients alone."""
    try:
        return dict(job(backend, cohort, server_round))
    except Exception as error:
        if out_of_memory(error):
            raise
        if len(cohort) == 1:
            return {cohort[0].client: ClientFailure(cohort[0].client, "train", error)}
    apart: dict[int, Result | ClientFailure] = {}
    for work in cohort:
        apart.update(attempt(backend, [work], server_round, job))
    return apart


def look(backend: Backend, state: Tensors, data: Data, batch: Rows) -> Sums:
    """Sums of losses and scores over a batch of rows, and of what they are divided by."""
    setting = backend.setting
    taken = data.gather(torch.from_numpy(batch).to(setting.device))
    logits = backend.logits(state, taken.inputs)
    objective, labels = setting.objective, taken.labels
    found = {"loss": objective.losses(logits, labels), **objective.scores(logits, labels)}
    sums = {name: float(values.double().sum()) for name, values in found.items()}
    return {**sums, UNITS: float(objective.counts(labels).sum())}
