"""What a strategy remembers over rounds, as tensors of its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from fedtune.rules.base import Stateful


def state_of(owner: object, attributes: Iterable[str]) -> dict[str, Tensor]:
    """The attributes of an object that make its state, as `attribute.name` to tensor.

    An attribute is a tensor, a number, a dict of tensors by name or client id, an object with a
    `state_dict`, or None.
    """
    return {name: t for attribute in attributes for name, t in _parts(owner, attribute)}


def _parts(owner: object, attribute: str) -> Iterator[tuple[str, Tensor]]:
    value = getattr(owner, attribute)
    if isinstance(value, Tensor):
        yield attribute, value
    elif isinstance(value, int | float):
        yield attribute, torch.tensor(value)
    elif isinstance(value, dict):
        yield from ((f"{attribute}.{key}", tensor) for key, tensor in value.items())
    elif isinstance(value, Stateful):
        yield from ((f"{attribute}.{name}", t) for name, t in value.state_dict().items())


def restore(owner: object, attributes: Iterable[str], state: Mapping[str, Tensor]) -> None:
    """Take back what `state_of` gave."""
    for attribute in attributes:
        start, value = f"{attribute}.", getattr(owner, attribute)
        own = {n.removeprefix(start): t for n, t in state.items() if n.startswith(start)}
        if isinstance(value, dict):
            setattr(owner, attribute, {_key(name): tensor for name, tensor in own.items()})
        elif isinstance(value, Stateful):
            value.load_state_dict(own)
        elif isinstance(value, int | float):
            setattr(owner, attribute, type(value)(state[attribute].item()))
        elif value is None or isinstance(value, Tensor):
            setattr(owner, attribute, state.get(attribute))


def _key(name: str) -> str | int:
    """Names of tensors are no numbers; ids of clients are."""
    return int(name) if name.isdigit() else name
