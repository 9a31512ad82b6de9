"""Per-example gradients of stacked layers: compact, and sums of them without making them.

Every stacked layer is tapped: what goes in is kept, and the gradient of what comes out. An
example's gradient of a matrix is Σ_t g_t·x_tᵀ over its positions t. It is made (K·b × one client's
slice), or only its norm is, as ‖·‖² = Σ_{t,t'} (g_t·g_t')(x_t·x_t') (ghost clipping; Li et al.,
ICLR 2022), and the clipped sum follows from x and g. Which is cheaper depends on positions and
widths (mixed ghost clipping; Bu et al., NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedtune.adapters.layout import A, B, R
from fedtune.cohort.stacked import StackedLayerNorm, StackedLinear, StackedLoRA

Way = Literal["auto", "hooks", "ghost"]


class Samples(Protocol):
    """One tensor's gradient for each of N = K·b examples."""

    def squares(self) -> Tensor:
        """Squared norms, (N,)."""
        ...

    def total(self, factors: Tensor) -> Tensor:
        """Sums of the examples' gradients times their factors (K, b), by client: (K, size)."""
        ...

    def without(self, rows: Tensor) -> Samples:
        """The same with 0 for some examples, bool (N,)."""
        ...


@dataclass(frozen=True)
class Made:
    """Gradients as they are, (N, *shape)."""

    values: Tensor

    def squares(self) -> Tensor:
        """Squared norms, (N,)."""
        return self.values.flatten(1).square().sum(1)

    def total(self, factors: Tensor) -> Tensor:
        """Factors (K, b) to (K, size)."""
        rows = self.values.reshape(*factors.shape, -1)
        return torch.bmm(factors.unsqueeze(1), rows).squeeze(1)

    def without(self, rows: Tensor) -> Made:
        """The same with 0 for some examples, bool (N,)."""
        return Made(_cleared(self.values, rows))


@dataclass(frozen=True)
class Product:
    """Gradients Σ_t left_t ⊗ right_t, (N, o, i), of left (N, T, o) and right (N, T, i)."""

    left: Tensor
    right: Tensor

    @property
    def dearer(self) -> bool:
        """Whether to make the gradient costs more than two Gram matrices over positions."""
        positions = self.left.shape[1]
        return 2 * positions**2 <= self.left.shape[2] * self.right.shape[2]

    def made(self) -> Made:
        """Each example's gradient."""
        return Made(torch.bmm(self.left.mT, self.right))

    def squares(self) -> Tensor:
        """Squared norms, (N,), without the gradients."""
        left, right = (torch.bmm(one, one.mT) for one in (self.left, self.right))
        return (left * right).sum((1, 2)).clamp_min(0.0)

    def total(self, factors: Tensor) -> Tensor:
        """Factors (K, b) to (K, size), without the gradients."""
        clients = len(factors)
        left = (self.left * factors.reshape(-1, 1, 1)).reshape(clients, -1, self.left.shape[2])
        right = self.right.reshape(clients, -1, self.right.shape[2])
        return torch.bmm(left.mT, right).flatten(1)

    def without(self, rows: Tensor) -> Product:
        """The same with 0 for some examples, bool (N,)."""
        return Product(_cleared(self.left, rows), _cleared(self.right, rows))


@dataclass
class Tap:
    """One pass of a batch through a layer.

    Attributes:
        layer: the stacked layer.
        inputs: what went in, (N, ..., d_in), after dropout.
        grad: of what came out, once the loss was differentiated.
    """

    layer: nn.Module
    inputs: Tensor
    grad: Tensor | None = None


@dataclass
class Recorder:
    """Taps of one forward pass."""

    taps: list[Tap] = field(default_factory=list)

    def __call__(self, layer: nn.Module, inputs: Tensor, out: Tensor) -> Tensor:
        """The output, its gradient kept when it comes."""
        tap = Tap(layer, inputs.detach())
        self.taps.append(tap)
        anchor = torch.zeros((), device=out.device, requires_grad=True)
        tapped: Tensor = _Tapped.apply(out, anchor, tap)  # type: ignore[no-untyped-call]
        return tapped

    def samples(self, trained: Sequence[str], way: Way, dtype: torch.dtype) -> dict[str, Samples]:
        """Gradients of the trained tensors after the backward pass.

        Args:
            trained: names of the trained tensors.
            way: `hooks` makes them all, `ghost` none that it can do without, `auto` the cheaper.
            dtype: in which they are computed.

        Raises:
            NotImplementedError: for a trained tensor that no tapped layer holds.
        """
        found: dict[str, list[Samples]] = {}
        for tap in self.taps:
            if tap.grad is None:
                continue
            x, grad = (_positions(one).to(dtype) for one in (tap.inputs, tap.grad))
            for name, samples in SAMPLERS[type(tap.layer)](tap.layer, x, grad).items():
                found.setdefault(name, []).append(samples)
        if missing := [name for name in trained if name not in found]:
            raise NotImplementedError(f"no per-example gradient of {missing[0]}")
        return {name: _settled(found[name], way) for name in trained}


class _Tapped(torch.autograd.Function):
    """The identity, which keeps the gradient that passes."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, anchor: Tensor, tap: Tap) -> Tensor:
        ctx.tap = tap
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (ctx.tap.grad,) = grads
        return grads[0], None, None


def _cleared(values: Tensor, rows: Tensor) -> Tensor:
    return values.masked_fill(rows.view(-1, *([1] * (values.dim() - 1))), 0.0)


def _positions(tensor: Tensor) -> Tensor:
    """(N, ..., d) as (N, T, d)."""
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


def _settled(samples: list[Samples], way: Way) -> Samples:
    """One tensor's samples; of a layer that was passed more than once, made and added."""
    if len(samples) > 1:
        made = [s.made() if isinstance(s, Product) else s for s in samples]
        return Made(torch.stack([m.values for m in made if isinstance(m, Made)]).sum(0))
    (only,) = samples
    if isinstance(only, Product) and (way == "hooks" or (way == "auto" and not only.dearer)):
        return only.made()
    return only


def _lora(layer: StackedLoRA, x: Tensor, grad: Tensor) -> dict[str, Samples]:
    """Of s·B·R·A·x: each factor's from what enters it and what comes back to it."""
    tensors = {part: layer.binding.tensors.get(layer.name + part) for part in (A, R, B)}
    a, r, b = (t if t is None else t.to(x.dtype) for t in tensors.values())
    assert a is not None
    assert b is not None
    inner = _through(x, a)
    middle = inner if r is None else _through(inner, r)
    grad = layer.scaling * grad
    back = _through(grad, b.mT)
    found: dict[str, Samples] = {layer.name + B: Product(grad, middle)}
    if r is not None:
        found[layer.name + R] = Product(back, inner)
        back = _through(back, r.mT)
    found[layer.name + A] = Product(back, x)
    return found


def _linear(layer: StackedLinear, x: Tensor, grad: Tensor) -> dict[str, Samples]:
    pair = Product(x, grad) if layer.transposed else Product(grad, x)
    found: dict[str, Samples] = {f"{layer.name}.weight": pair}
    if layer.biased:
        found[f"{layer.name}.bias"] = Made(grad.sum(1))
    return found


def _layer_norm(layer: StackedLayerNorm, x: Tensor, grad: Tensor) -> dict[str, Samples]:
    normal = F.layer_norm(x, layer.shape, eps=layer.eps)
    found: dict[str, Samples] = {f"{layer.name}.weight": Made((grad * normal).sum(1))}
    if layer.biased:
        found[f"{layer.name}.bias"] = Made(grad.sum(1))
    return found


def _through(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows (K·b, T, i) by a shared weight (o, i), or by their client's of (K, o, i)."""
    if weight.dim() == 2:
        return F.linear(rows, weight)
    folded = rows.reshape(len(weight), -1, rows.shape[-1])
    return torch.bmm(folded, weight.mT).view(*rows.shape[:-1], -1)


Sampler = Callable[[Any, Tensor, Tensor], Mapping[str, Samples]]
SAMPLERS: dict[type[nn.Module], Sampler] = {
    StackedLoRA: _lora,
    StackedLinear: _linear,
    StackedLayerNorm: _layer_norm,
}


def clipped_sum(samples: Mapping[str, Samples], factors: Tensor) -> Tensor:
    """Σ of clipped gradients by client, (K, P) in the order of the samples."""
    return torch.cat([one.total(factors) for one in samples.values()], dim=1)


def norms(samples: Mapping[str, Samples]) -> Tensor:
    """Each example's norm over all tensors together, (N,)."""
    return torch.stack([one.squares() for one in samples.values()]).sum(0).sqrt()
