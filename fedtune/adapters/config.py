"""From the scenario's `[adapter]` to `peft.LoraConfig`: each field honoured or refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from peft import LoraConfig
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedtune.errors import ScenarioError
from fedtune.scenario.adapter import AdapterSection

RENAMED = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
}
PASSED_ON = (
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
)
DETECTED = ("fan_in_fan_out", "base_model_name_or_path", "peft_type", "inference_mode", "task_type")
COMMON_TARGETS = (
    ("query", "value"), ("q_proj", "v_proj"), ("c_attn",), ("query_key_value",),
    ("query_proj", "value_proj"), ("q_lin", "v_lin"), ("Wqkv",),
    ("qkv_proj",), ("q", "v"),
)  # fmt: skip


def lora_config(section: AdapterSection, model: nn.Module, saved: list[str]) -> LoraConfig:
    """The `LoraConfig` of a scenario for a model.

    Args:
        section: the scenario's `[adapter]`.
        model: the base model, to resolve `targets = "auto"` and to find Conv1D targets.
        saved: modules saved whole with the adapter (the head).

    Raises:
        ScenarioError: for an unknown key, a field that is not supported, or no such target.
    """
    for key in section.parameters():
        _refuse(key)
    targets = _targets(section.targets, model)
    _check_saved(section.modules_to_save or [], model)
    saved = _outermost(model, [*saved, *(section.modules_to_save or [])])
    passed = {key: getattr(section, key) for key in PASSED_ON if key != "modules_to_save"}
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=targets,
        modules_to_save=saved or None,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
        **{key: value for key, value in passed.items() if value is not None},
    )


def modules_saved(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The modules that PEFT saves whole for `modules_to_save = names`: those whose name ends so.

    Args:
        model: the base model, before it is wrapped.
        names: ends of names, not only whole parts: `norm` also takes `input_layernorm`.
    """
    found = model.named_modules(remove_duplicate=False)
    return [name for name, _ in found if name.endswith(tuple(names))]


def _outermost(model: nn.Module, names: list[str]) -> list[str]:
    """The names, or where they match modules within one another, those of the outer ones alone.

    PEFT would put a copy of the inner one beside the copy that the outer one holds already.
    """
    matched = modules_saved(model, names)
    outer = [one for one in matched if not any(one.startswith(f"{other}.") for other in matched)]
    return names if len(outer) == len(matched) else outer


def _check_saved(modules: list[str], model: nn.Module) -> None:
    for module in modules:
        if not modules_saved(model, [module]):
            raise ScenarioError(
                f"adapter.modules_to_save = {modules!r}: no module's name ends in {module!r}"
            )


def _refuse(key: str) -> None:
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    if key in RENAMED:
        raise ScenarioError(f"adapter.{key}: unknown key; write adapter.{RENAMED[key]}")
    if key in DETECTED:
        raise ScenarioError(f"adapter.{key}: is set by fedtune; leave it out")
    if key in fields:
        raise ScenarioError(
            f"adapter.{key}: this field of LoraConfig is not supported; supported besides "
            f"{', '.join(RENAMED.values())}: {', '.join(PASSED_ON)}"
        )
    allowed = ", ".join(("kind", *RENAMED.values(), *PASSED_ON))
    raise ScenarioError(f"adapter.{key}: unknown key; allowed: {allowed}")


def _targets(targets: str | list[str], model: nn.Module) -> str | list[str]:
    if targets != "auto":
        return targets
    leaves = {name.rsplit(".", 1)[-1] for name in _linear_names(model)}
    usual = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(_model_type(model), ())
    for names in (*COMMON_TARGETS, tuple(usual)):
        if names and leaves.issuperset(names):
            return list(names)
    raise ScenarioError(
        f"adapter.targets = 'auto': none of the usual attention projections is in "
        f"{type(model).__name__}; give names out of: {', '.join(sorted(leaves))}"
    )


def _model_type(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def _linear_names(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]


def refused(
    model: nn.Module, section: AdapterSection, head: list[str], error: Exception
) -> ScenarioError:
    """The one line for a `LoraConfig` that PEFT refuses on this model."""
    names = [name for name in _linear_names(model) if name.split(".")[0] not in head]
    leaves = sorted({name.rsplit(".", 1)[-1] for name in names})
    reason = str(error).split("\n", 1)[0].split(". ", 1)[0]
    given = {key: getattr(section, key) for key in ("targets", *PASSED_ON)}
    shown = ", ".join(f"adapter.{key} = {value!r}" for key, value in given.items() if value)
    return ScenarioError(f"{shown}: {reason}; linear layers of this model: {', '.join(leaves)}")
