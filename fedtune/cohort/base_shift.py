"""A frozen base that the server moves: every adapted layer's weight is W + s·ΔW."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedtune.adapters.layout import BASE, Layout, Tensors
from fedtune.cohort.stacked import adapted_layers


class BaseShift:
    """Puts a state's ΔW into the base; W itself is kept beside.

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
        """Move the base to what a state says; one without ΔW leaves it where it is.

        The moved weights are parameters of this model's own: other runs of the process share W.
        """
        given = {spec.name: state[spec.name] for spec in self.specs if spec.name in state}
        places = [tensor.data_ptr() for tensor in given.values()]
        if not given or places == self._places:
            return
        self._places = []
        for name, delta in given.items():
            owner = name.removesuffix(BASE)
            layer, scaling = self.layers[owner]
            original = self._originals.setdefault(owner, layer.weight.detach())
            step = scaling * (delta.T if isinstance(layer, Conv1D) else delta)
            moved = (original.to(step) + step).to(original)
            layer.weight = nn.Parameter(moved, requires_grad=False)
        self._places, self._held = places, list(given.values())  # held, so that places stay theirs

    def back(self) -> None:
        """Give the base its own weights back."""
        for owner, original in self._originals.items():
            self.layers[owner][0].weight = nn.Parameter(original, requires_grad=False)
        self._places = []
