"""Adapter kinds: what of W + s·B·A is trained, and how a layer is changed for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from fedtune.adapters.between import put_between
from fedtune.adapters.ranked import Chosen, Ternary, edges_kept
from fedtune.errors import ScenarioError
from fedtune.scenario.adapter import AdapterSection
from fedtune.scenario.names import ADAPTERS_GROUP, load

Role = Literal["A", "B", "R", "W", "head", "saved"]


@dataclass(frozen=True)
class Kind:
    """A kind of adapter.

    Attributes:
        description: a line for `fedtune list adapters`.
        trained: roles of the tensors that clients train and send: A, B, or R between them.
        place: changes a layer that carries PEFT's A and B: puts an R between them, or a
            parametrisation (torch.nn.utils.parametrize) on a factor. A module that is one must have
            a method `matrix` that also takes tensors with leading client dimensions.
        like: the kind of fedtune's that strategies and attacks take it for.
        unscaled: whether s = 1.
        starts_elsewhere: whether a fresh adapter may give other outputs than the base.
    """

    description: str
    trained: frozenset[Role]
    place: Callable[[LoraLinear, AdapterSection], None] | None = None
    like: str | None = None
    unscaled: bool = False
    starts_elsewhere: bool = False

    def __post_init__(self) -> None:
        if "R" in self.trained and self.trained & {"A", "B"}:
            raise ValueError("a kind trains R, or A and B, not both: B and A frame an R")


def between(layer: LoraLinear, section: AdapterSection) -> None:
    """Put an R between B and A, which become orthonormal.

    Raises:
        ScenarioError: if the layer has fewer orthonormal directions than the rank.
    """
    most, rank = min(layer.in_features, layer.out_features), int(layer.r["default"])
    if rank > most:
        raise ScenarioError(
            f"adapter.rank = {rank}: a layer of {layer.out_features} x {layer.in_features} has "
            f"{most} orthonormal directions, the most that an adapter with an R can have"
        )
    put_between(layer)


def edges(layer: LoraLinear, section: AdapterSection) -> None:
    """Make B a choice among fixed edges."""
    factor = layer.lora_B["default"]
    assert isinstance(factor, nn.Linear)
    assert section.form != "mask"
    keep = edges_kept(factor.weight.numel(), section.keep, section.form)
    chosen = Chosen(Ternary(keep, section.constant, section.form, section.by_magnitude))
    register_parametrization(factor, "weight", chosen, unsafe=True)


KINDS = {
    "lora": Kind("A and B are trained (Hu et al., 2022)", frozenset({"A", "B"})),
    "ffa": Kind("A is frozen and shared, B is trained (FFA-LoRA; 2024)", frozenset({"B"})),
    "lora-sb": Kind(
        "A and B are frozen and orthonormal, R between them is trained (LoRA-SB; 2024)",
        frozenset({"R"}),
        between,
        unscaled=True,
    ),
    "rank": Kind(
        "A is frozen, B is chosen among fixed edges by votes (federated rank learning)",
        frozenset({"B"}),
        edges,
        starts_elsewhere=True,
    ),
    "none": Kind(
        "no adapter: head and adapter.modules_to_save alone are trained, for comparison",
        frozenset(),
    ),
}


def find_kind(name: str) -> Kind:
    """The kind of that name: fedtune's own, or one that a package adds by entry point.

    Raises:
        ScenarioError: if what the entry point names is no `Kind`.
    """
    if name in KINDS:
        return KINDS[name]
    found = load(ADAPTERS_GROUP, name)
    if not isinstance(found, Kind):
        raise ScenarioError(f"adapter.kind = {name!r}: its entry point names {found!r}, no Kind")
    return found
