"""A network from random weights: a vote on which of them count, or all of them trained."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from transformers import PreTrainedModel

from fedtune.adapters.initial import initial_tensors
from fedtune.adapters.layout import Layout, Tensors, TensorSpec, load_tensors
from fedtune.adapters.ranked import Chosen, Ternary, edges_kept, signed_constants
from fedtune.adapters.reading import CHOSEN
from fedtune.errors import ScenarioError
from fedtune.scenario.adapter import AdapterSection

SCRATCH = "fedtune-conv"  # the only model type of which all layers are voted on, or trained


def check_scratch(section: AdapterSection) -> None:
    """Refuse keys that a network without an adapter has no use for.

    Raises:
        ScenarioError: for such a key.
    """
    used = {"kind", "keep", "form", "by_magnitude"} if section.form == "mask" else {"kind"}
    plain = AdapterSection()
    for key in [*AdapterSection.model_fields, *section.parameters()]:
        given = getattr(section, key)
        if key not in used and given != getattr(plain, key, None):
            raise ScenarioError(
                f"adapter.{key} = {given!r}: of no use without an adapter; allowed: "
                f"{', '.join(sorted(used))}"
            )


def scratch(
    model: PreTrainedModel,
    section: AdapterSection,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    master: torch.dtype,
) -> tuple[Layout, Tensors]:
    """A model whose weights, random constants of the seed, are voted on (form `mask`) or trained.

    Scores for a vote take the place of the weights.

    Returns:
        The layout of what is trained, and its values before round 1.

    Raises:
        ScenarioError: if it has a parameter that is no weight of a linear or convolutional layer.
    """
    model.to(device=device, dtype=dtype, memory_format=torch.channels_last).requires_grad_(False)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    constants = {name: signed_constants(name, shape, seed) for name, shape in shapes.items()}
    voting = section.form == "mask"
    specs = [_spec(model, name, constants[name].to(device), section) for name in shapes]
    layout = Layout(tuple(specs))
    initial = initial_tensors(layout, seed, {} if voting else constants, 0.0)
    for spec in layout.specs:
        live = model.get_parameter(spec.parameter)
        live.data = live.data.to(master)
        live.requires_grad_(True)
    load_tensors(model, layout.specs, initial)
    return layout, initial


def _spec(
    model: PreTrainedModel, name: str, weights: torch.Tensor, section: AdapterSection
) -> TensorSpec:
    """Of a layer's weights, or of the scores that are put in their place."""
    owner, _, leaf = name.rpartition(".")
    layer, shape = model.get_submodule(owner), tuple(weights.shape)
    if leaf != "weight" or not isinstance(layer, nn.Linear | nn.Conv2d):
        raise ScenarioError(
            f"task.base: {name} of {type(model).__name__} is no weight of a linear or "
            "convolutional layer; only builtin:conv is trained without an adapter"
        )
    if section.form != "mask":
        return TensorSpec(name, name, shape, "saved", True, True)
    keep = edges_kept(weights.numel(), section.keep, "mask")
    ternary = Ternary(keep, 1.0, "mask", section.by_magnitude, weights)
    register_parametrization(layer, "weight", Chosen(ternary), unsafe=True)
    return TensorSpec(name, f"{owner}{CHOSEN}", shape, "saved", True, True, form=ternary)
