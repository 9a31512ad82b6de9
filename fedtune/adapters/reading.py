"""The layout of a model that PEFT has wrapped."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import cast

from peft import PeftModel
from torch import nn

from fedtune.adapters.kinds import Role
from fedtune.adapters.layout import BASE, A, B, Form, HeadPolicy, Layout, TensorSpec
from fedtune.adapters.ranked import Chosen

CHOSEN = ".parametrizations.weight.original"


INNER, OUTER = ".lora_B.default.inner", ".lora_B.default.outer"


def read_layout(
    model: PeftModel,
    trained: Collection[Role],
    head: HeadPolicy,
    heads: Sequence[str],
    delivers: Collection[str] = (),
) -> Layout:
    """The layout of a freshly wrapped PEFT model whose adapter is called `default`.

    Args:
        trained: roles of the low-rank tensors that are trained.
        head: what happens to the head.
        heads: names of the modules that make the head.
        delivers: roles of the frozen tensors that the server sends.
    """
    specs = []
    for name, parameter in model.named_parameters():
        if ".default" not in name:
            continue
        role = _role(_wire_name(name), heads)
        moves = role in trained or role == "saved" or (role == "head" and head != "frozen")
        specs.append(
            TensorSpec(
                name=_wire_name(name),
                parameter=name,
                shape=tuple(parameter.shape),
                role=role,
                trained=moves,
                sent=moves and not (role == "head" and head == "local"),
                delivered=not moves and role in delivers,
                form=_form(model, name),
            )
        )
    return Layout((*specs, *(_moved(specs) if "W" in delivers else ())))


def _moved(specs: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
    """The changes of the base's own weights."""
    shapes = {spec.name: spec.shape for spec in specs}
    for spec in specs:
        if spec.role == "A":
            layer = spec.name.removesuffix(A)
            shape = (shapes[layer + B][0], spec.shape[1])
            yield TensorSpec(layer + BASE, "", shape, "W", False, False, True)


def _wire_name(parameter: str) -> str:
    """The name in `adapter_model.safetensors`."""
    parameter = parameter.replace(CHOSEN, ".weight")
    parameter = parameter.replace(INNER, ".lora_R").replace(OUTER, ".lora_B")
    return parameter.replace(".modules_to_save.default", "").replace(".default", "")


def _form(model: PeftModel, parameter: str) -> Form | None:
    if CHOSEN not in parameter:
        return None
    chosen = model.get_submodule(parameter.removesuffix(".original"))
    assert isinstance(chosen, nn.ModuleList)
    (how,) = chosen
    return how.ternary if isinstance(how, Chosen) else cast(Form, how)


def _role(name: str, heads: Sequence[str]) -> Role:
    if ".lora_A." in name:
        return "A"
    if ".lora_B." in name:
        return "B"
    if ".lora_R." in name:
        return "R"
    inner = name.removeprefix("base_model.model.")
    return "head" if inner.startswith(tuple(f"{head}." for head in heads)) else "saved"
