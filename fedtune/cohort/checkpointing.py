"""Gradient checkpointing: a layer's activations are computed again instead of kept.

Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016. Transformers' own switch only
works in training mode, in which a frozen base never is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from fedtune.errors import ScenarioError


def checkpoint_layers(model: PreTrainedModel | PeftModel) -> int:
    """Keep of each transformer layer only what goes in; gives the number of layers.

    Results do not change: the base has no dropout, and that of adapters is a function of its place.
    Of layers within layers these are the inner ones, so that nothing is computed three times.

    Raises:
        ScenarioError: if the model has no such layers.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    layers = [m for m in layers if sum(other in layers for other in m.modules()) == 1]
    if not layers:
        raise ScenarioError(
            f"engine.gradient_checkpointing: {type(model).__name__} has no layers that could be"
        )
    model.config.use_cache = False  # keys and values would be added twice
    for layer in layers:
        layer.forward = partial(  # type: ignore[method-assign]
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
    return len(layers)


def checkpointed_layers(model: nn.Module) -> list[nn.Module]:
    """The last checkpointed layer of each kind: of one class, with parameters of one shape."""
    kinds: dict[tuple[object, ...], nn.Module] = {}
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, partial) and forward.func is checkpoint:
            kinds[type(module), *(p.shape for p in module.parameters())] = module
    return list(kinds.values())


@contextmanager
def keeping(layer: nn.Module) -> Iterator[None]:
    """Within it a checkpointed layer keeps its activations.

    That is what backward holds when it has computed the layer again: its activations, and what goes
    into each layer.
    """
    checked = vars(layer)["forward"]
    layer.forward = checked.args[0]
    try:
        yield
    finally:
        layer.forward = checked
