"""From named tensors to one vector of differences, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """Tensors one after another, (d,), floating."""
    if not tensors:
        return torch.empty(0)
    whole = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
    return whole if whole.is_floating_point() else whole.float()


def difference(tensors: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> Tensor:
    """A reply less what was sent, (d,), floating.

    Args:
        tensors: of the reply; those not in `sent` are left out.
        sent: the tensors that the rule is for, in the order of the vector.
    """
    return differences([tensors], sent)[0]


def differences(replies: Sequence[Mapping[str, Tensor]], sent: Mapping[str, Tensor]) -> Tensor:
    """Each reply less what was sent, (n, d), floating; nothing is copied twice."""
    first = flat(sent)
    rows = first.new_empty(len(replies), len(first))
    for row, tensors in zip(rows, replies, strict=True):
        torch.cat([tensors[name].to(first).reshape(-1) for name in sent], out=row)
    return rows.sub_(first)


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether float32 holds all numbers of some tensors, so that their squares fit into float64.

    Their extremes tell, in one pass without a copy.
    """
    ends = [end for tensor in tensors if tensor.numel() for end in torch.aminmax(tensor)]
    return not ends or bool(torch.stack(ends).float().isfinite().all())


def applied(update: Tensor, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was sent, moved by an update (d,); integers are rounded."""
    parts = update.split([tensor.numel() for tensor in sent.values()])
    return {
        name: _cast(tensor + part.view(tensor.shape), tensor.dtype)
        for (name, tensor), part in zip(sent.items(), parts, strict=True)
    }


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return (value if dtype.is_floating_point else value.round()).to(dtype)
