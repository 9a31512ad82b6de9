"""What a Ray actor of ours is: one copy of base and data, and what is done with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedtune.cohort.backend import Backend
from fedtune.cohort.jobs import Job, Sums, attempt, look
from fedtune.cohort.sizing import (
    fitting_size,
    forget_peak_memory,
    out_of_memory,
    peak_memory,
    release,
)
from fedtune.cohort.together import CohortBackend
from fedtune.tasks.base import Data, Rows
from fedtune.tasks.library import Library
from fedtune.version import versions
from fedtune.workers.packing import Flat, Parcel, pack, unpack


@dataclass(frozen=True)
class Holding:
    """What a worker holds.

    Attributes:
        backend: trains and evaluates.
        data: what can be evaluated on, by name.
    """

    backend: Backend
    data: Mapping[str, Data]


@dataclass(frozen=True)
class Common:
    """Tensors that several parcels share.

    Attributes:
        number: tells them from those of another time.
        flats: the tensors.
    """

    number: int
    flats: list[Flat]


Make = Callable[[Library], Holding]


class Worker:
    """An actor: takes parcels, gives parcels.

    Args:
        make: loads what it holds.
    """

    def __init__(self, make: Make) -> None:
        self._library = Library()
        self._held: list[Holding] = []
        self.hold(make)

    def hold(self, make: Make) -> None:
        """Hold something else; a base and data that both agree on stay."""
        self._held.clear()
        self._number, self._shared = -1, list[Tensor]()
        self._held.append(make(self._library))
        forget_peak_memory(self._device)

    @property
    def held(self) -> Holding:
        """What it holds."""
        return self._held[0]

    def hello(self) -> dict[str, str]:
        """Versions of what it computes with, once it holds everything."""
        return versions()

    def process(self) -> int:
        """Its process's id."""
        return os.getpid()

    def peak(self) -> int:
        """Most bytes that it held at once."""
        return peak_memory(self._device)

    def fitting(self, common: Common, parcel: Parcel) -> int:
        """How many such clients fit into a cohort here."""
        backend = self.held.backend
        assert isinstance(backend, CohortBackend)
        return fitting_size(backend, self._unpacked(common, parcel))

    def attempt(
        self, job: Job[Any], server_round: int, common: Common, parcel: Parcel
    ) -> Parcel | None:
        """What comes of a cohort, by client; None: it does not fit into memory."""
        try:
            cohort = self._unpacked(common, parcel)
            return pack(attempt(self.held.backend, cohort, server_round, job))
        except Exception as error:
            if not out_of_memory(error):
                raise
        release(self._device)
        return None

    def looks(
        self, name: str, batches: Sequence[Rows], common: Common, parcel: Parcel
    ) -> list[Sums]:
        """Sums over batches of rows of the data of that name."""
        state, data = self._unpacked(common, parcel), self.held.data[name]
        return [look(self.held.backend, state, data, batch) for batch in batches]

    @property
    def _device(self) -> torch.device:
        return self.held.backend.setting.device

    def _unpacked(self, common: Common, parcel: Parcel) -> Any:
        if self._number != common.number:
            self._shared = [flat.tensor(self._device) for flat in common.flats]
            self._number = common.number
        return unpack(parcel, self._shared, self._device)
