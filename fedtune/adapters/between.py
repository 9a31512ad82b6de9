"""Kind `lora-sb`: W + B·R·A with B and A frozen and orthonormal, only R (r x r) trained."""

from __future__ import annotations

from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


class Between(nn.Module):
    """B·R in the place of PEFT's `lora_B`.

    Args:
        outer: B.
    """

    def __init__(self, outer: nn.Linear) -> None:
        super().__init__()
        rank = outer.in_features
        place = {"device": outer.weight.device, "dtype": outer.weight.dtype}
        self.inner = nn.Linear(rank, rank, bias=False, **place)
        self.outer = outer

    def forward(self, x: Tensor) -> Tensor:
        """(..., r) to (..., d_out)."""
        found: Tensor = self.outer(self.inner(x))
        return found


def put_between(layer: LoraLinear) -> None:
    """Give an adapted layer an R."""
    outer = layer.lora_B["default"]
    assert isinstance(outer, nn.Linear)
    layer.lora_B["default"] = Between(outer)
