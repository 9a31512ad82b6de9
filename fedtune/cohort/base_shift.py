"""A frozen base that the server moves: every adapted layer's weight is W + s·ΔW."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedtune.adapters.layout import Layout, Tensors
from fedtune.cohort.stacked import adapted_layers


class BaseShift:
    """Puts a state's ΔW, in the precision of the adapters, into the base; W itself is kept beside.

    Args:
        model: with its adapters in place.
        layout: says which tensors are ΔW (role `W`).
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.specs = [spec for spec in layout.specs if spec.role == "W"]
        self.layers = adapted_layers(model) if self.specs else {}
        self._originals: Tensors = {}
        self._places: list[int] = []
        self._held: list[Tensor] = []

    def put(self, state: Tensors) -> None:
        """Move the base to what a state says; one without ΔW leaves it where it is."""
        given = {spec.name: state[spec.name] for spec in self.specs if spec.name in state}
        places = [tensor.data_ptr() for tensor in given.values()]
        if not given or places == self._places:
            return
        self._places, self._held = places, list(given.values())  # held, so that places stay theirs
        for name, delta in given.items():
            owner = name.removesuffix(".base.weight")
            layer, scaling = self.layers[owner]
            weight = layer.weight.data
            original = self._originals.setdefault(owner, weight.clone())
            step = scaling * (delta.T if isinstance(layer, Conv1D) else delta)
            weight.copy_(original.to(step) + step)

    def back(self) -> None:
        """Give the base its own weights back."""
        for owner, original in self._originals.items():
            self.layers[owner][0].weight.data.copy_(original)
        self._places = []
