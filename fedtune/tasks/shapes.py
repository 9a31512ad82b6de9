"""A base without its weights: shapes from its configuration, values of its head alone.

A server that neither evaluates nor changes the base needs no more of it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from fedtune.adapters.wrap import PretrainedBase
from fedtune.errors import ScenarioError, first_line
from fedtune.scenario.task import CONV, TaskSection
from fedtune.tasks.bases import (
    MODELS,
    WEIGHTS,
    base_folder,
    base_path,
    labels_of,
    pretrained,
    quiet,
    settled_head,
)
from fedtune.tasks.heads import in_head, with_missing

INDEX = f"{WEIGHTS}.index.json"


def load_shapes(task: TaskSection, classes: list[str]) -> PretrainedBase:
    """The base of a task on the meta device; its head's parameters on the CPU.

    Those of the head that the checkpoint holds, in safetensors, are read; where there is no
    checkpoint on this machine they begin as new ones do.

    Raises:
        ScenarioError: if its configuration cannot be had, or it has no head of its own.
    """
    if task.base == CONV:
        raise ScenarioError(f"task.base = {CONV!r}: its weights are what is trained")
    path = base_path(task.base)
    auto, takes = MODELS[task.kind]
    try:
        with quiet(), torch.device("meta"):
            config = pretrained(AutoConfig, path, **labels_of(task, classes))
            model = auto.from_config(config)
    except (OSError, ValueError) as error:
        raise ScenarioError(f"task.base = {task.base!r}: {first_line(error)}") from None
    if model.main_input_name != takes:
        raise ScenarioError(f"task.base = {task.base!r}: takes {model.main_input_name}")
    if task.kind == "causal-lm":
        return PretrainedBase(model, [], frozenset(), path)
    held = _held(path, model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    missing = {name for name in shapes if name not in held}
    other = {name for name in shapes if name in held and held[name][1] not in (None, shapes[name])}
    head, fresh, notes = settled_head(task, classes, model, missing, other)
    if not head:
        raise ScenarioError(f"task.base = {task.base!r}: {type(model).__name__} has no head")
    for module in head:
        model.get_submodule(module).to_empty(device="cpu")
    for name in shapes:
        if in_head(name, head) and name not in fresh:
            model.get_parameter(name).data = _read(path, held[name][0])
    if not held:
        fresh = {name for name in fresh if in_head(name, head)}
    return PretrainedBase(model, with_missing(head, fresh), frozenset(fresh), path, notes)


def _files(path: str) -> list[Path]:
    """The safetensors files of a checkpoint, as far as they are on this machine."""
    try:
        folder = base_folder(path)
    except ScenarioError:
        return []
    if (folder / INDEX).is_file():
        named = set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(named) if (folder / name).is_file()]
    return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []


def _held(path: str, model: PreTrainedModel) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    """A checkpoint's tensors by their names in the model: their own names, and their shapes.

    Names are those that Transformers gives them when it loads them (a backbone's prefix, old names
    of layers); what it makes of several tensors has no shape here. No weight is read.
    """
    mapping = get_model_conversion_mapping(model)
    renamed = [one for one in mapping if isinstance(one, WeightRenaming)]
    made = [one for one in mapping if isinstance(one, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, tuple[str, tuple[int, ...] | None]] = {}
    for file in _files(path):
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                name, converted = rename_source_key(key, renamed, made, prefix, state)
                shape = None if converted else tuple(opened.get_slice(key).get_shape())
                found[name] = key, shape
    return found


def _read(path: str, name: str) -> Tensor:
    for file in _files(path):
        with safe_open(file, "pt") as opened:
            if name in opened.keys():  # noqa: SIM118
                tensor: Tensor = opened.get_tensor(name)
                return tensor.float()
    raise KeyError(name)
