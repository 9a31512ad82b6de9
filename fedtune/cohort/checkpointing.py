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

    Raises:
        ScenarioError: if the model has no such layers.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
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


@contextmanager
def last_layer_kept(model: nn.Module) -> Iterator[None]:
    """Within it the activations of the last checkpointed layer are kept, if there is one.

    What is held then is the most that is held at once outside it: backward computes that layer
    again while it holds what goes into each.
    """
    layers = [m for m in model.modules() if isinstance(vars(m).get("forward"), partial)]
    if not layers:
        yield
        return
    last, checked = layers[-1], vars(layers[-1])["forward"]
    last.forward = checked.args[0]
    try:
        yield
    finally:
        last.forward = checked
