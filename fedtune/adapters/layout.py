"""The tensors of an adapter: their names, roles and order in the flat vector of a client.

A client's trained tensors are one row of a (K, P) matrix; `Layout` says where each lies. Names are
those of PEFT's `adapter_model.safetensors`, so they are the wire names and the file's names too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from fedtune.adapters.ballots import Ballot
from fedtune.adapters.kinds import Role
from fedtune.adapters.packed import Packed, Places
from fedtune.adapters.ranked import Ternary

A, R, B, BASE = ".lora_A.weight", ".lora_R.weight", ".lora_B.weight", ".base.weight"
HeadPolicy = Literal["shared", "frozen", "local"]
Tensors = dict[str, Tensor]


class Form(Protocol):
    """How a trained tensor makes the matrix of a layer."""

    def matrix(self, tensor: Tensor) -> Tensor:
        """Of tensors with any leading dimensions."""
        ...


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the adapter.

    Attributes:
        name: as in `adapter_model.safetensors`.
        parameter: the live parameter's name in the PEFT model; empty for role `W`.
        shape: of one client's tensor.
        role: `A`, `B`, `R` between them, `W` for what the server adds to the base's own weight,
            `head`, or `saved` for other modules trained whole (`modules_to_save`).
        trained: changed by local training (else frozen and shared by all clients).
        sent: travels between server and clients, both ways.
        delivered: frozen, and comes from the server.
        form: how the tensor makes the matrix; None: it is the matrix.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    role: Role
    trained: bool
    sent: bool
    delivered: bool = False
    form: Form | None = None

    @property
    def ternary(self) -> Ternary | None:
        """The form of a tensor that is scores of edges."""
        return self.form if isinstance(self.form, Ternary) else None

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def wire_bytes(self, itemsize: int) -> int:
        """Bytes of the tensor in a message: numbers of `itemsize` bytes, or a packed ranking."""
        if self.ternary is None:
            return self.size * itemsize
        return Ballot.on(self.ternary, self.size).size


@dataclass(frozen=True)
class Layout:
    """All tensors of an adapter, in PEFT's order."""

    specs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.specs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two tensors of an adapter are called {twice}")

    @cached_property
    def trained(self) -> tuple[TensorSpec, ...]:
        """Those a client trains; together they are its flat vector."""
        return tuple(s for s in self.specs if s.trained)

    @cached_property
    def frozen(self) -> tuple[TensorSpec, ...]:
        """Those no client changes."""
        return tuple(s for s in self.specs if not s.trained)

    @cached_property
    def sent(self) -> tuple[TensorSpec, ...]:
        """Those in messages, both ways."""
        return tuple(s for s in self.specs if s.sent)

    @cached_property
    def received(self) -> tuple[TensorSpec, ...]:
        """Those that the server sends: `sent`, and frozen ones that it delivers."""
        return tuple(s for s in self.specs if s.sent or s.delivered)

    @cached_property
    def kept(self) -> tuple[TensorSpec, ...]:
        """Those a client trains and keeps (a local head)."""
        return tuple(s for s in self.specs if s.trained and not s.sent)

    @cached_property
    def chooses(self) -> bool:
        """Whether a matrix is made of a trained tensor."""
        return any(s.form is not None for s in self.specs)

    def training(self, only: Collection[str] | None) -> Layout:
        """The layout in which, of what can be trained, only the tensors of these names are."""
        if only is None:
            return self
        key = frozenset(only)
        if key not in self._narrowed:
            specs = (replace(s, trained=s.trained and s.name in key) for s in self.specs)
            self._narrowed[key] = Layout(tuple(specs))
        return self._narrowed[key]

    @cached_property
    def _narrowed(self) -> dict[frozenset[str], Layout]:
        return {}

    def constants(self, state: Mapping[str, Tensor]) -> Tensors:
        """What a state holds of the tensors that are not trained."""
        return {s.name: state[s.name] for s in self.frozen if s.name in state}

    @cached_property
    def places(self) -> Places:
        """Where each trained tensor lies in a client's flat vector."""
        return Places({s.name: s.shape for s in self.trained})

    @property
    def width(self) -> int:
        """P, the length of a client's flat vector."""
        return sum(s.size for s in self.trained)

    def matrices(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """The tensors as the model's layers take them: matrices made."""
        made = {
            s.name: s.form.matrix(tensors[s.name])
            for s in self.specs
            if s.form and s.name in tensors
        }
        return {**tensors, **made}

    def folded(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """The tensors as a plain LoRA adapter: matrices, and every B·R in the place of B."""
        plain = self.matrices(tensors)
        for spec in self.specs:
            if spec.role == "R":
                outer = spec.name.replace(".lora_R.", ".lora_B.")
                plain[outer] = plain[outer] @ plain.pop(spec.name).to(plain[outer])
        return plain

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The trained tensors as one vector, (P,)."""
        if isinstance(tensors, Packed) and tensors.places is self.places:
            return tensors.vector
        return torch.cat([tensors[s.name].reshape(-1) for s in self.trained])

    def split(self, flat: Tensor) -> Tensors:
        """Views of the trained tensors in a (..., P) tensor, each (..., *shape)."""
        return self.places.split(flat)


def load_tensors(
    model: nn.Module, specs: Iterable[TensorSpec], tensors: Mapping[str, Tensor]
) -> None:
    """Copy tensors into a PEFT model's live parameters."""
    with torch.no_grad():
        for spec in (spec for spec in specs if spec.parameter):
            model.get_parameter(spec.parameter).copy_(tensors[spec.name])
