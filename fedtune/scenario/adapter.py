"""`[adapter]`: which matrices are trained, and what they begin as."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedtune.scenario.names import ADAPTERS_GROUP, Named
from fedtune.scenario.section import OpenSection

KIND = Named(ADAPTERS_GROUP, ("auto", "lora", "ffa", "lora-sb", "rank", "none"))


KindName = Annotated[str, KIND]


class AdapterSection(OpenSection):
    """The adapter, by the fields of `peft.LoraConfig`; those not here are refused by name."""

    kind: KindName = Field(
        "auto",
        description="auto: the strategy's own; lora: A and B; ffa: B; lora-sb: an R between frozen "
        "B and A; rank: an order of fixed edges of B; none: no layer is adapted, only the head and "
        "modules_to_save are trained",
    )
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = Field(
        16.0, description="s = alpha / rank scales B A; no use for lora-sb, where s = 1"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: str | list[str] = Field(
        "auto", description="module names or a pattern, as LoraConfig.target_modules takes them"
    )
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] | None = None
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] | None = None
    use_rslora: bool = False
    init: Literal["auto", "client-sketch", "client-dense", "public", "random", "pooled"] = Field(
        "auto",
        description="where B, A and the first R of lora-sb come from: a gradient of the base that "
        "clients send as two random projections, or whole, or that the server takes on "
        "task.server_examples; nothing; or the clients' pooled data (simulation only). auto: "
        "client-sketch, under privacy random",
    )
    init_examples: Annotated[int, Field(ge=1)] = Field(
        64, description="examples of a client for that gradient"
    )
    init_step: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="size of the step that the first R makes; auto: the learning rate of the first "
        "step if 2 % of all a client's steps were a warm-up",
    )
    keep: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5, description="share of the edges that count, of kind rank"
    )
    constant: Annotated[float, Field(gt=0)] = Field(
        0.1, description="size of an edge, of kind rank"
    )
    form: Literal["antithetic", "signed", "mask"] = Field(
        "antithetic",
        description="of kind rank: two edges +c and -c an entry of B, or one whose sign is voted "
        "on too; mask: the random weights of builtin:conv themselves",
    )
    by_magnitude: bool = Field(
        False,
        description="of kind rank: the edges of highest |score| count, as in the authors' program, "
        "and not those of highest score",
    )
