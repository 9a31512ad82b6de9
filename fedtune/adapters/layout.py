"""The tensors of an adapter: their names, roles and order in the flat vector of a client.

A client's trained tensors are one row of a (K, P) matrix; `Layout` says where each lies. Names are
those of PEFT's `adapter_model.safetensors`, so they are the wire names and the file's names too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal, Protocol, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from fedtune.adapters.ballots import Ballot
from fedtune.adapters.factors import orthonormal
from fedtune.adapters.kinds import Role
from fedtune.adapters.ranked import Chosen, Ternary, initial_scores
from fedtune.randomness import key_of, uniform

SPREAD = 0.03
A, R, B, BASE = ".lora_A.weight", ".lora_R.weight", ".lora_B.weight", ".base.weight"
CHOSEN = ".parametrizations.weight.original"
INNER, OUTER = ".lora_B.default.inner", ".lora_B.default.outer"
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
        return torch.cat([tensors[s.name].reshape(-1) for s in self.trained])

    def split(self, flat: Tensor) -> Tensors:
        """Views of the trained tensors in a (..., P) tensor, each (..., *shape).

        One split operation, so that its gradient is one concatenation.
        """
        parts = flat.split([s.size for s in self.trained], dim=-1)
        lead = flat.shape[:-1]
        return {
            s.name: part.view(*lead, *s.shape) for s, part in zip(self.trained, parts, strict=True)
        }


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
        moves = role in trained or (role == "saved" and bool(trained))
        moves = moves or (role == "head" and head != "frozen")
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


def initial_tensors(
    layout: Layout, seed: int, known: Mapping[str, Tensor], head_std: float
) -> Tensors:
    """The adapter before round 1, float32 on the CPU: a pure function of seed and names.

    A is Kaiming-uniform (a = √5), so U(±1/√d_in), and B is 0, as PEFT initialises them; each A has
    a stream of its own. Around an R, which is 0, A and B are orthonormal. Scores lie evenly in
    ±`SPREAD`, two neighbours an entry of B (only their ratio to the learning rate matters). Tensors
    that the checkpoint holds are kept; new matrices are uniform with standard deviation
    `head_std`, new normalisation weights are 1, new biases 0.

    Args:
        layout: the adapter's tensors.
        seed: the run's seed.
        known: tensors of saved modules that the checkpoint holds, by spec name.
        head_std: standard deviation of new head matrices.
    """
    framed = any(s.role == "R" for s in layout.specs)
    return {s.name: _initial(s, seed, known, head_std, framed) for s in layout.specs}


def _initial(
    spec: TensorSpec, seed: int, known: Mapping[str, Tensor], head_std: float, framed: bool
) -> Tensor:
    if spec.name in known:
        kept: Tensor = known[spec.name].detach().float().cpu().clone()
        return kept
    if spec.ternary is not None:
        paired = spec.ternary.form == "antithetic"
        shape = spec.shape[:-1] if paired else spec.shape
        return initial_scores(uniform(key_of("init", seed, spec.name), shape), SPREAD, spec.ternary)
    if spec.role in ("R", "W") or (spec.role == "B" and not framed):
        return torch.zeros(spec.shape)
    if len(spec.shape) < 2 and spec.name.endswith(".weight"):
        return torch.ones(spec.shape)
    if framed and spec.role in ("A", "B"):
        return orthonormal(2.0 * uniform(key_of("init", seed, spec.name), spec.shape) - 1.0)
    if len(spec.shape) < 2:
        return torch.zeros(spec.shape)
    bound: float = spec.shape[1] ** -0.5 if spec.role == "A" else head_std * 3.0**0.5
    return (2.0 * uniform(key_of("init", seed, spec.name), spec.shape) - 1.0) * bound


def load_tensors(
    model: nn.Module, specs: Iterable[TensorSpec], tensors: Mapping[str, Tensor]
) -> None:
    """Copy tensors into a PEFT model's live parameters."""
    with torch.no_grad():
        for spec in (spec for spec in specs if spec.parameter):
            model.get_parameter(spec.parameter).copy_(tensors[spec.name])
