"""Tensors in Flower's records without serialising them in process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedtune.adapters.packed import Packed
from fedtune.grids.compat import NUMPY_STYPE, array_record, arrays_of

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
            dtype=dtype_name(tensor.dtype),
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
def dtype_name(dtype: torch.dtype) -> str:
    """NumPy's name of a dtype."""
    return str(dtype).removeprefix("torch.")


class PackedArrays(MutableMapping[str, Array]):
    """The arrays of a record whose tensors lie in one vector; made when one is looked at.

    From then on they are ordinary arrays, each of which may be changed.

    Attributes:
        tensors: None once the arrays are made.
    """

    def __init__(self, tensors: Packed) -> None:
        self.tensors: Packed | None = tensors
        self._arrays: dict[str, Array] = {}

    def copy(self) -> dict[str, Array]:
        """The arrays, as the copy of a record keeps them."""
        return dict(self._made())

    def __getitem__(self, name: str) -> Array:
        return self._made()[name]

    def __setitem__(self, name: str, array: Array) -> None:
        self._made()[name] = array

    def __delitem__(self, name: str) -> None:
        del self._made()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made())

    def __len__(self) -> int:
        return len(self._made())

    def __repr__(self) -> str:
        return repr(self._made())

    def __reduce__(self) -> tuple[type, tuple[dict[str, Array]]]:
        return dict, (self._made(),)

    def _made(self) -> dict[str, Array]:
        if self.tensors is not None:
            self._arrays = {name: LazyArray(tensor) for name, tensor in self.tensors.items()}
            self.tensors = None
        return self._arrays


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as a record, not serialised (ArrayRecord's constructor would copy the bytes)."""
    if isinstance(tensors, Packed):
        return array_record(PackedArrays(tensors))
    return array_record({name: LazyArray(tensor) for name, tensor in tensors.items()})


def packed(record: ArrayRecord) -> Packed | None:
    """The tensors of a record, if they lie in one vector and nobody has looked at one."""
    arrays = arrays_of(record)
    return arrays.tensors if isinstance(arrays, PackedArrays) else None


def to_tensor(array: Array) -> Tensor:
    """An array's tensor; a lazy one's own, where it is."""
    if isinstance(array, LazyArray):
        return cast(Tensor, array.__dict__["tensor"])
    return torch.from_numpy(array.numpy())


def records(content: RecordDict, kind: type[Kind]) -> list[Kind]:
    """The records of a kind; Flower's own properties copy and check them at each look."""
    return [record for record in content.values() if isinstance(record, kind)]


def read(record: ArrayRecord) -> Mapping[str, Tensor]:
    """The tensors of a record, in one vector if they came so."""
    whole = packed(record)
    return to_tensors(record) if whole is None else whole


def to_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors of a record."""
    if (whole := packed(record)) is not None:
        return dict(whole)
    return {name: to_tensor(array) for name, array in record.items()}
