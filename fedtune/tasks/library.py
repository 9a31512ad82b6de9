"""One base model and one data set in memory for all runs of a process that agree on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, cast

import torch
from transformers import PreTrainedModel

from fedtune.adapters.config import modules_saved
from fedtune.adapters.wrap import inside
from fedtune.tasks.examples import Examples
from fedtune.tasks.stamps import Stamp, stamps

Key = tuple[Hashable, str, str, tuple[str, ...]]


class Closable(Protocol):
    """What is ended by `close`."""

    def close(self) -> None:
        """End it."""


Kept = TypeVar("Kept", bound=Closable)


class Library:
    """Holds what was loaded last, and lends it out.

    Each run gets modules of its own over shared parameters: PEFT puts adapters on its copy, and the
    head, which is trained, is copied too. What runs keep beside (Ray workers) ends with `close`.

    Attributes:
        threads: what `engine.threads = "auto"` is for all runs that borrow, once it is chosen.
    """

    def __init__(self) -> None:
        self.threads: int | None = None
        self._key: Key | None = None
        self._held: Examples | None = None
        self._files: list[Stamp] = []
        self._kept: tuple[Hashable, Any] | None = None

    def keep(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """What runs use one after another; that of another key is closed first."""
        if self._kept is None or self._kept[0] != key:
            self.close()
            self._kept = key, make()
        return cast(Kept, self._kept[1])

    def close(self) -> None:
        """Close what was kept."""
        if self._kept is not None:
            self._kept[1].close()
            self._kept = None

    def borrow(
        self,
        what: Hashable,
        load: Callable[[], Examples],
        device: torch.device,
        dtype: torch.dtype,
        whole: Sequence[str] = (),
    ) -> Examples:
        """Examples on their device, with a base that may be wrapped.

        Args:
            what: says all that `load` depends on, contents of files included; but for those that
                the examples name, which are looked at here.
            load: reads examples and base.
            device: of the base and the examples.
            dtype: of the frozen base and of floating inputs.
            whole: names of modules beside the head that are trained whole.
        """
        key = (what, str(device), str(dtype), tuple(whole))
        if key != self._key or self._held is None or stamps(self._held.files) != self._files:
            self._key, self._held = None, None
            loaded = load()
            self._files = stamps(loaded.files)
            self._held = _placed(loaded, device, dtype, whole)
            self._key = key
        held = self._held
        own = _trained_whole(held.base.model, [*held.base.head, *whole])
        return replace(held, base=replace(held.base, model=_copy(held.base.model, own)))


def _placed(
    examples: Examples, device: torch.device, dtype: torch.dtype, whole: Sequence[str]
) -> Examples:
    base = examples.base
    own = _trained_whole(base.model, [*base.head, *whole])
    for parameter in base.model.parameters():
        if id(parameter) not in own:
            parameter.data = parameter.data.to(device, dtype)
    return replace(
        examples, train=examples.train.to(device, dtype), test=examples.test.to(device, dtype)
    )


def _trained_whole(model: PreTrainedModel, names: Sequence[str]) -> set[int]:
    """Identities of the parameters of modules that are saved whole; a tied one by any name."""
    modules = modules_saved(model, names)
    found = model.named_parameters(remove_duplicate=False)
    return {id(parameter) for name, parameter in found if inside(name, modules)}


def _copy(model: PreTrainedModel, own: Collection[int]) -> PreTrainedModel:
    """New modules; parameters outside `own` are the same tensors."""
    shared = {id(p): p for p in model.parameters() if id(p) not in own}
    return copy.deepcopy(model, shared)
