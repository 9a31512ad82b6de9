"""Layers that hold K clients' tensors and meet a batch in which the clients are folded.

The batch has K·b rows, client by client. A trained tensor has a leading client dimension and
meets its client's rows by a batched matrix product; the frozen base sees one ordinary batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from fedtune.adapters.layout import A, B, R, Tensors
from fedtune.randomness import dropout_scale, key_of, mix


class NotStackableError(TypeError):
    """A trainable layer that has no stacked form; the model trains on the sequential backend."""


@dataclass
class Binding:
    """What the stacked layers of one model read: the tensors and clients of the moment.

    Attributes:
        tensors: trained tensors (K, *shape) and frozen ones (*shape), by spec name.
        clients: K.
        dropout_keys: int64, (K,), keys of the current batch; None switches dropout off.
        tap: keeps what passes through a layer, given (layer, input, output); gives the output.
    """

    tensors: Tensors = field(default_factory=dict)
    clients: int = 1
    dropout_keys: Tensor | None = None
    tap: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None

    def passed(self, layer: nn.Module, inputs: Tensor, out: Tensor) -> Tensor:
        """A layer's output on its way out."""
        return out if self.tap is None else self.tap(layer, inputs, out)


def batch_keys(keys: Tensor, step: int, micro: int | Tensor) -> Tensor:
    """Dropout keys of a batch: of its client (K,), optimiser step and place within the step."""
    return mix(keys + (step << 20) + micro)


class CohortDropout(nn.Module):
    """Dropout whose draw depends on (client, batch, module, row, position, feature) only."""

    def __init__(self, binding: Binding, name: str, p: float) -> None:
        super().__init__()
        self.binding, self.p = binding, p
        self.key = key_of("module", name)

    def forward(self, x: Tensor) -> Tensor:
        """Drop from x, (K·b, ..., d)."""
        keys = self.binding.dropout_keys
        if keys is None or self.p == 0.0:
            return x
        rows = x.shape[0] // len(keys)
        middle = x[0].numel() // x.shape[-1]
        scale = dropout_scale(mix(keys ^ self.key), rows, middle, x.shape[-1], self.p)
        return x * scale.view(x.shape).to(x.dtype)


class StackedLoRA(nn.Module):
    """y = W·x + s·B_k·A_k·dropout(x) for each client k, after Hu et al. (2022), eq. 3.

    A and B are (K, r, d_in) and (K, d_out, r); one that is frozen has no client dimension. Of kind
    `lora-sb` an R_k, (K, r, r), stands between them. The second product is added into the base
    layer's own output where autograd lets it be.
    """

    def __init__(self, layer: LoraLinear, binding: Binding, name: str) -> None:
        super().__init__()
        self.base_layer = layer.get_base_layer()
        self.scaling = float(layer.scaling["default"])
        self.binding, self.name = binding, name
        drop = layer.lora_dropout["default"]
        self.dropout = CohortDropout(binding, name, getattr(drop, "p", 0.0))

    def forward(self, x: Tensor) -> Tensor:
        """(K·b, ..., d_in) to (K·b, ..., d_out)."""
        k = self.binding.clients
        rows = x.reshape(k, -1, x.shape[-1])
        out: Tensor = self.base_layer(rows)
        a = self.binding.tensors[self.name + A]
        b = self.binding.tensors[self.name + B]
        dropped = self.dropout(x)
        inner = _project(dropped.reshape(rows.shape), a)
        if (between := self.binding.tensors.get(self.name + R)) is not None:
            inner = _project(inner, between)
        if b.dim() == 2:
            out = torch.add(out, F.linear(inner, b), alpha=self.scaling)
        elif out._is_view():
            out = torch.baddbmm(out, inner, b.mT, alpha=self.scaling)
        else:
            out = out.baddbmm_(inner, b.mT, alpha=self.scaling)
        return self.binding.passed(self, dropped, out.view(*x.shape[:-1], out.shape[-1]))


class StackedLinear(nn.Module):
    """A trained linear layer of a head: weight (K, d_out, d_in), bias (K, d_out)."""

    def __init__(self, layer: nn.Linear | Conv1D, binding: Binding, name: str) -> None:
        super().__init__()
        self.binding, self.name = binding, name
        self.transposed = isinstance(layer, Conv1D)
        self.biased = layer.bias is not None

    def forward(self, x: Tensor) -> Tensor:
        """(K·b, ..., d_in) to (K·b, ..., d_out)."""
        weight = self.binding.tensors[f"{self.name}.weight"]
        weight = weight if self.transposed else weight.mT
        rows = x.reshape(weight.shape[0], -1, x.shape[-1])
        if self.biased:
            bias = self.binding.tensors[f"{self.name}.bias"].unsqueeze(1)
            out = torch.baddbmm(bias, rows, weight)
        else:
            out = torch.bmm(rows, weight)
        return self.binding.passed(self, x, out.view(*x.shape[:-1], out.shape[-1]))


class StackedLayerNorm(nn.Module):
    """A trained layer normalisation of a head: weight and bias (K, d)."""

    def __init__(self, layer: nn.LayerNorm, binding: Binding, name: str) -> None:
        super().__init__()
        self.binding, self.name = binding, name
        self.shape, self.eps = layer.normalized_shape, layer.eps
        self.biased = layer.bias is not None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (K·b, ..., d)."""
        weight = self.binding.tensors[f"{self.name}.weight"]
        normal = F.layer_norm(x, self.shape, eps=self.eps)
        rows = normal.reshape(weight.shape[0], -1, x.shape[-1]) * weight.unsqueeze(1)
        if self.biased:
            rows = rows + self.binding.tensors[f"{self.name}.bias"].unsqueeze(1)
        return self.binding.passed(self, x, rows.view(x.shape))


_STACKED_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StackedLinear,
    Conv1D: StackedLinear,
    nn.LayerNorm: StackedLayerNorm,
}


def stack_head(module: nn.Module, binding: Binding, name: str) -> nn.Module:
    """A trained head module in stacked form, its dropout keyed.

    Raises:
        NotStackableError: for a layer with parameters of its own and no stacked form.
    """
    if form := _STACKED_FORMS.get(type(module)):
        return form(module, binding, name)
    if isinstance(module, nn.Dropout | CohortDropout):
        return CohortDropout(binding, name, module.p)
    if any(True for _ in module.parameters(recurse=False)):
        raise NotStackableError(f"{name} is a trained {type(module).__name__}")
    clone = copy.copy(module)
    clone._modules = {
        child: stack_head(sub, binding, f"{name}.{child}") if sub is not None else None
        for child, sub in module._modules.items()
    }
    return clone


def stack_model(model: nn.Module, binding: Binding, trained: Collection[str]) -> list[Swap]:
    """Put stacked layers in place of a PEFT model's adapter layers.

    Args:
        model: the PEFT model.
        binding: what the new layers read.
        trained: names of the trained tensors. Saved modules without one stay as they are; if no
            low-rank factor is trained, the base layers stand alone.

    Returns:
        The swaps made, for `unstack`.

    Raises:
        NotStackableError: leaving the model as it was.
    """
    swaps: list[Swap] = []
    lora = any(".lora_" in tensor for tensor in trained)
    for name, module in list(model.named_modules()):
        new: nn.Module | None = None
        if isinstance(module, LoraLinear):
            new = StackedLoRA(module, binding, name) if lora else module.get_base_layer()
        elif isinstance(module, ModulesToSaveWrapper) and holds_trained(name, trained):
            new = stack_head(module.modules_to_save["default"], binding, name)
        if new is not None:
            parent, _, leaf = name.rpartition(".")
            swaps.append(Swap(model.get_submodule(parent), leaf, module, new))
    for swap in swaps:
        setattr(swap.parent, swap.leaf, swap.stacked)
    return swaps


def adapted_layers(model: nn.Module) -> dict[str, tuple[nn.Linear | Conv1D, float]]:
    """The base's own layers that carry an adapter, and its scaling s, by the adapter's name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, StackedLoRA):
            found[module.name] = (module.base_layer, module.scaling)
        elif isinstance(module, LoraLinear):
            found[name] = (module.get_base_layer(), float(module.scaling["default"]))
    return found


def holds_trained(module: str, trained: Collection[str]) -> bool:
    """Whether a module of that name holds one of the trained tensors."""
    return any(tensor.startswith(f"{module}.") for tensor in trained)


@dataclass(frozen=True)
class Swap:
    """A layer put in place of another."""

    parent: nn.Module
    leaf: str
    original: nn.Module
    stacked: nn.Module


def unstack(swaps: list[Swap]) -> None:
    """Put the original layers back."""
    for swap in swaps:
        setattr(swap.parent, swap.leaf, swap.original)


def _project(rows: Tensor, a: Tensor) -> Tensor:
    return F.linear(rows, a) if a.dim() == 2 else torch.bmm(rows, a.mT)
