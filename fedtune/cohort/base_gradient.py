"""The gradient of the loss by the base's own weights, where an adapter is about to go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedtune.adapters.layout import Tensors
from fedtune.cohort.backend import Backend, Setting
from fedtune.cohort.engine import evaluation_batches
from fedtune.cohort.stacked import adapted_layers
from fedtune.tasks.base import Rows


def base_gradients(backend: Backend, setting: Setting, state: Tensors, rows: Rows) -> Tensors:
    """The gradient of the mean loss over rows by each adapted layer's weight.

    Args:
        state: the adapter's tensors; one that adds nothing gives the gradient of the base itself.
        rows: of the training data, not empty.

    Returns:
        (d_out, d_in) by the layer's name, in the precision of the adapters.
    """
    data, objective = setting.data, setting.objective
    found: Tensors = {}
    total = 0.0
    with backend.holding(state) as model, _by_weights(model) as layers:
        for part in evaluation_batches(rows, data.widths(rows)):
            batch = data.gather(torch.from_numpy(part).to(setting.device))
            losses = objective.losses(objective.logits(model, batch.inputs), batch.labels)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            total += float(objective.counts(batch.labels).sum())
            for name, layer in layers.items():
                fresh = _oriented(layer, layer.weight.grad).to(setting.master)
                found[name] = found[name] + fresh if name in found else fresh
                layer.weight.grad = None
    return {name: gradient / total for name, gradient in found.items()}


def base_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of each adapted layer, by name."""
    return {
        name: tuple(_oriented(layer, layer.weight).shape)  # type: ignore[misc]
        for name, (layer, _) in adapted_layers(model).items()
    }


@contextmanager
def _by_weights(model: nn.Module) -> Iterator[dict[str, nn.Linear | Conv1D]]:
    """The adapted layers, each with a weight of its own to differentiate by.

    The values stay where they are; but of a tied weight (a language head that is the embedding)
    only the path through this layer counts, the one that its adapter acts on.
    """
    layers = {name: layer for name, (layer, _) in adapted_layers(model).items()}
    tied = {name: layer.weight for name, layer in layers.items()}
    for layer in layers.values():
        layer.weight = nn.Parameter(layer.weight.detach())
    try:
        with torch.enable_grad():
            yield layers
    finally:
        for name, layer in layers.items():
            layer.weight = tied[name]
        model.zero_grad()


def _oriented(layer: nn.Linear | Conv1D, weight: Tensor | None) -> Tensor:
    """As d_out x d_in."""
    assert weight is not None
    return weight.T if isinstance(layer, Conv1D) else weight
