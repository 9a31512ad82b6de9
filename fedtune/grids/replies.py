"""What a usable reply is; anything else is set aside, counted and named."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fedtune.grids.arrays import records, to_tensor

MOST_EXAMPLES = 1e12


def reply_fault(content: RecordDict, expected: Mapping[str, Tensor], weight_key: str) -> str | None:
    """Why a training reply cannot be used, or None.

    Args:
        content: of the reply: one ArrayRecord and one MetricRecord.
        expected: the tensors it must hold, exactly.
        weight_key: the metric that holds its number of examples.
    """
    arrays, metrics_found = records(content, ArrayRecord), records(content, MetricRecord)
    if len(arrays) != 1 or len(metrics_found) != 1:
        return "must hold exactly one ArrayRecord and one MetricRecord"
    metrics = metrics_found[0]
    if fault := metrics_fault(metrics, weight_key):
        return fault
    if metrics[weight_key] == 0:
        return f"{weight_key} = 0: must be a number above 0"
    return _array_fault(arrays[0], expected)


def metrics_fault(metrics: MetricRecord, weight_key: str) -> str | None:
    """Why metrics cannot be averaged, or None; the weight may be 0."""
    for key, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"metric {key} = {value!r}: must be one finite number"
    weight = metrics.get(weight_key)
    if not isinstance(weight, int | float) or not 0 <= weight <= MOST_EXAMPLES:
        return f"{weight_key} = {weight!r}: must be a number above 0"
    return None


def _array_fault(record: ArrayRecord, expected: Mapping[str, Tensor]) -> str | None:
    if missing := expected.keys() - record.keys():
        return f"misses {min(missing)}"
    if surplus := record.keys() - expected.keys():
        return f"holds {min(surplus)}, which was not asked for"
    found: dict[str, Tensor] = {}
    for name, sent in expected.items():
        if tuple(record[name].shape) != tuple(sent.shape):
            return f"{name} has shape {tuple(record[name].shape)}, not {tuple(sent.shape)}"
        try:
            found[name] = to_tensor(record[name]).reshape(-1)
        except (TypeError, ValueError) as error:
            return f"{name} cannot be read ({error})"
    if not found or _finite(torch.cat(list(found.values()))):
        return None
    broken = next(name for name, tensor in found.items() if not _finite(tensor))
    return f"{broken} holds NaN or Inf"


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.sum(dtype=torch.float64).isfinite())
