"""The form of a usable reply: which tensors and metrics it holds, all of them finite."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fedtune.adapters.packed import Packed
from fedtune.errors import quoted
from fedtune.grids.arrays import packed, records, to_tensor
from fedtune.rules.flat import are_finite, flat

MOST_EXAMPLES = 1e12


class ReplyForm:
    """What every reply of a training round must be like.

    Args:
        expected: the tensors that it must hold, exactly, as they were sent.
        weight_key: the metric that holds its number of examples.
        check: says what else is wrong with the tensors of a reply.
    """

    def __init__(
        self,
        expected: Mapping[str, Tensor],
        weight_key: str,
        check: Callable[[Mapping[str, Tensor]], str | None] | None = None,
    ) -> None:
        self.expected, self.weight_key, self.check = expected, weight_key, check
        self._forms = [(n, tuple(t.shape), t.dtype, _kind(t)) for n, t in expected.items()]
        self._sent = flat(expected)
        self._key = tuple((name, tuple(t.shape)) for name, t in expected.items())
        self._alike = {t.dtype for t in expected.values()} == {self._sent.dtype}

    def fault(self, content: RecordDict) -> str | None:
        """Why a reply cannot be used, or None: one ArrayRecord and one MetricRecord are wanted."""
        arrays, metrics = records(content, ArrayRecord), records(content, MetricRecord)
        if len(arrays) != 1 or len(metrics) != 1:
            return "must hold exactly one ArrayRecord and one MetricRecord"
        if fault := metrics_fault(metrics[0], self.weight_key):
            return fault
        if metrics[0][self.weight_key] == 0:
            return f"{self.weight_key} = 0: must be a number above 0"
        return self._array_fault(arrays[0])

    def _array_fault(self, record: ArrayRecord) -> str | None:
        if (whole := packed(record)) is not None and self._fits(whole):
            return self._value_fault(whole, whole.vector.to(self._sent) - self._sent)
        wanted, came = self.expected.keys(), record.keys()
        if wanted != came:
            if missing := wanted - came:
                return f"misses {min(missing)}"
            return f"holds {min(came - wanted)}, which was not asked for"
        found: dict[str, Tensor] = {}
        for name, sizes, dtype, kind in self._forms:
            array = record[name]
            try:
                tensor = to_tensor(array)
            except Exception as error:  # whatever bytes a client may send
                return f"{name} cannot be read ({type(error).__name__}: {error})"
            for shape in (array.shape, tensor.shape):
                if tuple(shape) != sizes:
                    return f"{name} has shape {tuple(shape)}, not {sizes}"
            if tensor.dtype != dtype and _kind(tensor) != kind:
                return f"{name} has dtype {tensor.dtype}, not {dtype}".replace("torch.", "")
            found[name] = tensor
        change = flat({n: t.to(self.expected[n]) for n, t in found.items()}) - self._sent
        return self._value_fault(found, change)

    def _fits(self, whole: Packed) -> bool:
        """Whether packed tensors can be subtracted from what was sent in one piece."""
        numbers = self._alike and whole.vector.is_floating_point()
        return numbers and whole.places.key == self._key

    def _value_fault(self, found: Mapping[str, Tensor], change: Tensor) -> str | None:
        if are_finite([change]):
            return self.check(found) if self.check else None
        parts = zip(found, change.split([tensor.numel() for tensor in found.values()]), strict=True)
        broken = next(name for name, part in parts if not are_finite([part]))
        return f"{broken} holds NaN or Inf as float32"


def metrics_fault(metrics: MetricRecord, weight_key: str) -> str | None:
    """Why metrics cannot be averaged, or None; the weight may be 0."""
    for key, value in metrics.items():
        if not all(map(_is_finite, value if isinstance(value, list) else [value])):
            return f"metric {key} = {quoted(value)}: must be a finite number, or a list of such"
    weight = metrics.get(weight_key)
    if not isinstance(weight, int | float) or not 0 <= weight <= MOST_EXAMPLES:
        return f"{weight_key} = {quoted(weight)}: must be a number above 0"
    return None


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _kind(tensor: Tensor) -> str:
    """Kind of numbers: a float of another width can be used, an integer for a float cannot."""
    if tensor.is_floating_point():
        return "float"
    return str(tensor.dtype) if tensor.is_complex() or tensor.dtype == torch.bool else "integer"
