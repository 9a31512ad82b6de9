"""Objects as bytes with their tensors beside them, so that a shared tensor travels once."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Flat:
    """A tensor's bytes, in host memory, which Ray maps and does not copy."""

    data: NDArray[np.uint8]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Flat:
        """The bytes of a tensor, those of its storage that are its own."""
        whole = tensor.detach().cpu().contiguous().reshape(-1)
        return cls(whole.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape))

    def tensor(self, device: torch.device) -> Tensor:
        """The tensor on a device, with memory of its own."""
        if not self.data.size:
            return torch.empty(self.shape, dtype=self.dtype, device=device)
        raw = torch.from_numpy(self.data.copy())
        return raw.view(self.dtype).reshape(self.shape).to(device)

    @property
    def nbytes(self) -> int:
        """Its size."""
        return int(self.data.nbytes)


@dataclass(frozen=True)
class Parcel:
    """An object: its bytes, and the tensors in it that are not among the shared ones."""

    skeleton: bytes
    own: list[Flat]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return len(self.skeleton) + sum(flat.nbytes for flat in self.own)


class _Packer(pickle.Pickler):
    """Leaves tensors out: of each only its place stays, among the shared or its own."""

    def __init__(self, file: io.BytesIO, shared: Mapping[int, int]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.shared = shared
        self.own: dict[int, int] = {}
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: Any) -> tuple[str, int] | None:
        if not isinstance(obj, Tensor):
            return None
        if id(obj) in self.shared:
            return "shared", self.shared[id(obj)]
        if id(obj) not in self.own:
            self.own[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return "own", self.own[id(obj)]


class _Unpacker(pickle.Unpickler):
    def __init__(self, parcel: Parcel, shared: Sequence[Tensor], device: torch.device) -> None:
        super().__init__(io.BytesIO(parcel.skeleton))
        self.places = {"shared": shared, "own": [flat.tensor(device) for flat in parcel.own]}

    def persistent_load(self, pid: tuple[str, int]) -> Tensor:
        where, index = pid
        return self.places[where][index]


def tensors_of(thing: Any) -> list[Tensor]:
    """The tensors within an object, each once."""
    packer = _Packer(io.BytesIO(), {})
    packer.dump(thing)
    return packer.tensors


def shared_by(things: Sequence[Any]) -> list[Tensor]:
    """The tensors that more than one of some objects hold, by identity."""
    found = [tensors_of(thing) for thing in things]
    holders = Counter(id(tensor) for tensors in found for tensor in tensors)
    known = {id(tensor): tensor for tensors in found for tensor in tensors}
    return [known[place] for place, count in holders.items() if count > 1]


def pack(thing: Any, shared: Sequence[Tensor] = ()) -> Parcel:
    """An object as a parcel; of the shared tensors only their places are in it."""
    file = io.BytesIO()
    packer = _Packer(file, {id(tensor): i for i, tensor in enumerate(shared)})
    packer.dump(thing)
    return Parcel(file.getvalue(), [Flat.of(tensor) for tensor in packer.tensors])


def unpack(parcel: Parcel, shared: Sequence[Tensor], device: torch.device) -> Any:
    """The object of a parcel, its tensors on a device; the shared ones are the given ones."""
    return _Unpacker(parcel, shared, device).load()
