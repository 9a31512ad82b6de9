"""Putting an adapter on a base model with PEFT."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from transformers import PreTrainedModel

from fedtune.adapters.config import lora_config, modules_saved, refused
from fedtune.adapters.effect import check_excluded, check_saved, without_layers
from fedtune.adapters.initial import initial_tensors
from fedtune.adapters.kinds import find_kind
from fedtune.adapters.layout import HeadPolicy, Layout, Tensors, load_tensors
from fedtune.adapters.reading import read_layout
from fedtune.adapters.scratch import SCRATCH, check_scratch, scratch
from fedtune.errors import Incompatible, ScenarioError
from fedtune.scenario.adapter import AdapterSection

PREFIX = "base_model.model."


@dataclass(frozen=True)
class PretrainedBase:
    """A base model as a task loads it.

    Attributes:
        model: the Transformers model, on the CPU in float32.
        head: names of the modules that make the task's head.
        fresh: parameters that the checkpoint did not hold.
        source: what `from_pretrained` takes to load it again.
        notes: lines that the user should see.
    """

    model: PreTrainedModel
    head: list[str]
    fresh: frozenset[str]
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adapted:
    """A base model that carries an adapter.

    Attributes:
        model: the PEFT model, frozen base in the compute precision, in eval mode; of form `mask`
            the model itself.
        config: its `LoraConfig`, if it has one.
        layout: the adapter's tensors.
        initial: their values before round 1, float32 on the CPU.
        fresh: names of the tensors of saved modules that the checkpoint did not hold.
        starts_elsewhere: whether its outputs before round 1 may be others than the base's.
    """

    model: PeftModel | PreTrainedModel
    config: LoraConfig | None
    layout: Layout
    initial: Tensors
    fresh: frozenset[str] = frozenset()
    starts_elsewhere: bool = False


def wrap(
    base: PretrainedBase,
    section: AdapterSection,
    kind: str,
    head: HeadPolicy,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    delivers: Collection[str] = (),
) -> Adapted:
    """Put the adapter on the base model.

    The base moves to its device first and is wrapped there: parameters that move after wrapping
    are what silently broke training under Opacus (opacus#820).

    Args:
        dtype: precision of the frozen base; adapters are float32, or float64 with a float64 base.
        delivers: roles of the frozen tensors that the server sends.

    Raises:
        ScenarioError: if the targets match nothing or something that is not a linear layer.
    """
    if base.model.config.model_type == SCRATCH:
        check_scratch(section)
        made = scratch(base.model, section, seed, device, dtype, master_dtype(dtype))
        return Adapted(base.model.eval(), None, *made, starts_elsewhere=True)
    what = find_kind(kind)
    if what.unscaled:
        section = _unscaled(section, kind)
    if not what.trained:
        section = without_layers(section)
    modules = [name for name, _ in base.model.named_modules() if name]
    whole = modules_saved(base.model, [*base.head, *(section.modules_to_save or [])])
    everything = base.model.named_parameters(remove_duplicate=False)
    names = {n: p.detach().clone() for n, p in everything if inside(n, whole)}
    base.model.to(device=device, dtype=dtype).requires_grad_(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = lora_config(section, base.model, base.head)
            config.base_model_name_or_path = base.source
            model = get_peft_model(base.model, config)
    except (ValueError, TypeError, KeyError, re.error) as error:
        raise refused(base.model, section, base.head, error) from None
    _check_layers(model, section)
    layers = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    _check_patterns(layers, section)
    _check_lists(layers, section)
    check_excluded(modules, section, config)
    if what.place is not None:
        for name in layers:
            layer = model.get_submodule(name)
            assert isinstance(layer, LoraLinear)
            what.place(layer, section)
    layout = read_layout(model, what.trained, head, base.head, delivers)
    check_saved(layout, section)
    known = {f"{PREFIX}{n}": t for n, t in names.items() if n not in base.fresh}
    buffers = {f"{PREFIX}{n}": t for n, t in base.model.named_buffers() if inside(n, whole)}
    if absent := next((n for n, t in {**known, **buffers}.items() if t.is_meta), None):
        raise Incompatible(
            f"adapter.modules_to_save: the server has no weights of the base that {absent} begins "
            "as; give task.test"
        )
    std = float(getattr(base.model.config, "initializer_range", 0.02))
    initial = initial_tensors(layout, seed, known, std)
    layout = _from_nothing(model, layout, initial)
    for spec in (spec for spec in layout.specs if spec.parameter):
        parameter = model.get_parameter(spec.parameter)
        if spec.trained or spec.role != "head":
            parameter.data = parameter.data.to(master_dtype(dtype))
        parameter.requires_grad_(spec.trained)
    load_tensors(model, layout.specs, initial)
    fresh = frozenset(f"{PREFIX}{name}" for name in base.fresh)
    return Adapted(model.eval(), config, layout, initial, fresh, what.starts_elsewhere)


def _from_nothing(model: PeftModel, layout: Layout, initial: Tensors) -> Layout:
    """The layout in which signed edges make 0 of their initial scores, also in the model."""
    specs = []
    for spec in layout.specs:
        if spec.ternary is not None and spec.ternary.form == "signed":
            start = spec.ternary.matrix(initial[spec.name])
            spec = replace(spec, form=replace(spec.ternary, base=start))
            chosen = model.get_submodule(spec.parameter.removesuffix(".original"))[0]  # type: ignore[index]
            chosen.ternary = spec.ternary
        specs.append(spec)
    return Layout(tuple(specs))


def _unscaled(section: AdapterSection, kind: str) -> AdapterSection:
    """The section with s = 1 in every layer."""
    for key in ("use_rslora", "alpha_pattern"):
        if value := getattr(section, key):
            raise ScenarioError(f"adapter.{key} = {value!r}: with kind {kind!r}, s = 1 everywhere")
    patterns = {name: float(rank) for name, rank in (section.rank_pattern or {}).items()} or None
    return section.model_copy(update={"alpha": float(section.rank), "alpha_pattern": patterns})


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of adapters and optimiser state over a base in the given precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_patterns(layers: list[str], section: AdapterSection) -> None:
    names = [layer.removeprefix(PREFIX) for layer in layers]
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(section, key) or {}:
            if not any(get_pattern_key([pattern], name) == pattern for name in names):
                raise ScenarioError(
                    f"adapter.{key}: {pattern!r} matches none of the adapted layers"
                )


def _check_lists(layers: list[str], section: AdapterSection) -> None:
    targets = section.targets if isinstance(section.targets, list) else []
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise ScenarioError(f"adapter.targets = {targets!r}: nothing is called {target!r}")
    chosen = section.layers_to_transform
    for index in [chosen] if isinstance(chosen, int) else chosen or []:
        if not any(f".{index}." in name for name in layers):
            raise ScenarioError(f"adapter.layers_to_transform = {chosen!r}: no layer {index}")


def inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a parameter belongs to one of the modules, by their whole names."""
    return name.startswith(tuple(f"{module}." for module in modules))


def _check_layers(model: PeftModel, section: AdapterSection) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        shown = name.removeprefix(PREFIX)
        if not isinstance(module, LoraLinear):
            raise ScenarioError(
                f"adapter.targets = {section.targets!r}: matches {shown}, a "
                f"{type(module.get_base_layer()).__name__}; targets must be linear layers"
            )
        if ".modules_to_save." in name:
            raise ScenarioError(
                f"adapter.targets = {section.targets!r}: matches {shown.split('.')[0]}, which is "
                "saved whole with the adapter; leave it out of the targets"
            )
