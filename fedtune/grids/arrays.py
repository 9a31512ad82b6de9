"""Tensors in Flower's records without serialising them in process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedtune.grids.compat import NUMPY_STYPE, array_record

Kind = TypeVar("Kind", ArrayRecord, MetricRecord, ConfigRecord)


class LazyArray(Array):
    """A Flower `Array` that stays a tensor on its device until its bytes are asked for.

    To everybody else it is an ordinary `Array`: `data` holds npy bytes, made at the first look;
    copies and pickles are plain `Array`s.

    Args:
        tensor: of a dtype that NumPy has.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.__dict__.update(
            tensor=tensor.detach() if tensor.requires_grad else tensor,
            dtype=_name(tensor.dtype),
            shape=tuple(tensor.shape),
            stype=NUMPY_STYPE,
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The serialised array."""
        if "bytes" not in self.__dict__:
            self.__dict__["bytes"] = Array.from_numpy_ndarray(self._numpy()).data
        return cast(bytes, self.__dict__["bytes"])

    @data.setter
    def data(self, value: bytes) -> None:
        plain = Array(self.dtype, self.shape, self.stype, value)
        self.__dict__["tensor"] = torch.from_numpy(plain.numpy().copy())
        self.__dict__["bytes"] = value

    def numpy(self) -> np.ndarray[Any, np.dtype[Any]]:
        """A NumPy copy of the tensor."""
        return self._numpy().copy()

    def _numpy(self) -> np.ndarray[Any, np.dtype[Any]]:
        return cast("np.ndarray[Any, np.dtype[Any]]", self.__dict__["tensor"].cpu().numpy())

    def __deepcopy__(self, memo: dict[int, Any]) -> Array:
        return Array(self.dtype, self.shape, self.stype, self.data)

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


LazyArray.__qualname__ = Array.__qualname__


@cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as a record, not serialised (ArrayRecord's constructor would copy the bytes)."""
    return array_record({name: LazyArray(tensor) for name, tensor in tensors.items()})


def to_tensor(array: Array) -> Tensor:
    """An array's tensor; a lazy one's own, where it is."""
    if isinstance(array, LazyArray):
        return cast(Tensor, array.__dict__["tensor"])
    return torch.from_numpy(array.numpy())


def records(content: RecordDict, kind: type[Kind]) -> list[Kind]:
    """The records of a kind; Flower's own properties copy and check them at each look."""
    return [record for record in content.values() if isinstance(record, kind)]


def to_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors of a record."""
    return {name: to_tensor(array) for name, array in record.items()}
