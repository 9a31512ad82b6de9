"""From named tensors to one vector of differences, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fedtune.adapters.packed import Packed

LARGEST = torch.finfo(torch.float32).max


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """Tensors one after another, (d,), floating: integers as float32.

    Of packed tensors their own vector.
    """
    if isinstance(tensors, Packed) and tensors.vector.is_floating_point():
        return tensors.vector
    if not tensors:
        return torch.empty(0)
    floating = [t if t.is_floating_point() else t.float() for t in tensors.values()]
    return torch.cat([tensor.reshape(-1) for tensor in floating])


def difference(tensors: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> Tensor:
    """A reply less what was sent, (d,), floating.

    Args:
        tensors: of the reply; those not in `sent` are left out.
        sent: the tensors that the rule is for, in the order of the vector.

    Raises:
        ValueError: if they hold another number of numbers.
    """
    return differences([tensors], sent)[0]


def differences(replies: Sequence[Mapping[str, Tensor]], sent: Mapping[str, Tensor]) -> Tensor:
    """Each reply less what was sent, (n, d), floating; integers are subtracted exactly."""
    counts = {n: t.double() for n, t in sent.items() if not t.is_floating_point()}
    first = flat({n: torch.zeros_like(t) if n in counts else t for n, t in sent.items()})
    rows = first.new_empty(len(replies), len(first))
    alike = {tensor.dtype for tensor in sent.values()} == {first.dtype}
    for row, tensors in zip(rows, replies, strict=True):
        if alike and isinstance(tensors, Packed) and list(tensors) == list(sent):
            whole = tensors.vector.to(first)
        else:
            came = {name: tensors[name].to(tensor) for name, tensor in sent.items()}
            came.update({n: (came[n].double() - count).float() for n, count in counts.items()})
            whole = flat(came)
        if whole.shape != first.shape:
            raise ValueError(f"a reply of {len(whole)} numbers, not {len(first)}")
        torch.sub(whole, first, out=row)
    return rows


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether float32 holds all numbers of some tensors, so that their squares fit into float64.

    Their extremes tell, in one pass without a copy.
    """
    ends: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            ends.setdefault(tensor.device, []).extend(torch.aminmax(tensor))
    return all(abs(end) <= LARGEST for some in ends.values() for end in torch.stack(some).tolist())


def applied(update: Tensor, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was sent, moved by an update (d,); integers are rounded."""
    parts = update.split([tensor.numel() for tensor in sent.values()])
    return {
        name: _cast(tensor + part.view(tensor.shape), tensor.dtype)
        for (name, tensor), part in zip(sent.items(), parts, strict=True)
    }


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return (value if dtype.is_floating_point else value.round()).to(dtype)
