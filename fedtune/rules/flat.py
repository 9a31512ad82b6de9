"""From named tensors to one vector of differences, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def difference(tensors: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> Tensor:
    """A reply less what was sent, (d,), floating.

    Args:
        tensors: of the reply; those not in `sent` are left out.
        sent: the tensors that the rule is for, in the order of the vector.
    """
    parts = [(tensors[name].to(tensor) - tensor).reshape(-1) for name, tensor in sent.items()]
    return torch.cat([part if part.is_floating_point() else part.float() for part in parts])


def applied(update: Tensor, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was sent, moved by an update (d,); integers are rounded."""
    parts = update.split([tensor.numel() for tensor in sent.values()])
    return {
        name: _cast(tensor + part.view(tensor.shape), tensor.dtype)
        for (name, tensor), part in zip(sent.items(), parts, strict=True)
    }


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return (value if dtype.is_floating_point else value.round()).to(dtype)
