"""Kind `rank`, form `mask`: a vote on which of a network's own random weights count."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from transformers import PreTrainedModel

from fedtune.adapters.layout import (
    CHOSEN,
    Layout,
    Tensors,
    TensorSpec,
    initial_tensors,
    load_tensors,
)
from fedtune.adapters.ranked import Chosen, Ternary, edges_kept, signed_constants
from fedtune.errors import ScenarioError
from fedtune.scenario.schema import AdapterSection


def check_mask(section: AdapterSection) -> None:
    """Refuse keys that a network without an adapter has no use for.

    Raises:
        ScenarioError: for such a key.
    """
    used = {"kind", "keep", "form", "by_magnitude"}
    plain = AdapterSection()
    for key in [*AdapterSection.model_fields, *section.parameters()]:
        given = getattr(section, key)
        if key not in used and given != getattr(plain, key, None):
            raise ScenarioError(
                f"adapter.{key} = {given!r}: of no use with form 'mask'; allowed: "
                f"{', '.join(sorted(used))}"
            )


def mask(
    model: PreTrainedModel,
    section: AdapterSection,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    master: torch.dtype,
) -> tuple[Layout, Tensors]:
    """Put scores in the place of a model's weights; these become random constants of the seed.

    Returns:
        The scores' layout, and their values before round 1.

    Raises:
        ScenarioError: if it has a parameter that is no weight of a linear or convolutional layer.
    """
    model.to(device=device, dtype=dtype).requires_grad_(False)
    specs = []
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        layer = model.get_submodule(owner)
        if leaf != "weight" or not isinstance(layer, nn.Linear | nn.Conv2d):
            raise ScenarioError(
                f"adapter.form = 'mask': {name} of {type(model).__name__} is no weight of a linear "
                "or convolutional layer; it is for builtin:conv"
            )
        shape = tuple(parameter.shape)
        weights = signed_constants(name, shape, seed).to(device)
        keep = edges_kept(parameter.numel(), section.keep, "mask")
        ternary = Ternary(keep, 1.0, "mask", section.by_magnitude, weights)
        register_parametrization(layer, "weight", Chosen(ternary), unsafe=True)
        live = f"{owner}{CHOSEN}"
        specs.append(TensorSpec(name, live, shape, "saved", True, True, form=ternary))
    layout = Layout(tuple(specs))
    initial = initial_tensors(layout, seed, {}, 0.0)
    for spec in layout.specs:
        scores = model.get_parameter(spec.parameter)
        scores.data = scores.data.to(master)
        scores.requires_grad_(True)
    load_tensors(model, layout.specs, initial)
    return layout, initial
