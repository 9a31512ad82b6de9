"""`[clients]`: who holds what, who takes part, and how much each counts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedtune.scenario.section import OpenSection, Probability, Section, Share

LOCAL_HOLDOUT = 0.2


class PartitionSection(OpenSection):
    """How examples are dealt to clients; the other keys are those of the flwr-datasets class."""

    kind: Literal["iid", "dirichlet", "pathological", "shard", "linear", "square", "natural"] = (
        Field("iid", description="natural: each value of the column `by` is a client")
    )
    by: str | None = Field(
        None,
        description="column that examples are dealt by; by default the label; `length`: ten "
        "classes of length",
    )
    pattern: str | None = Field(
        None, description="regular expression whose first group, in that column, is the value"
    )


class GroupSection(Section):
    """Clients that take part with one probability."""

    share: Share = Field(description="of all clients")
    probability: Probability


class Participation(Section):
    """Who takes part in a round."""

    kind: Literal["fraction", "bernoulli", "groups", "clock", "trace"] = Field(
        "fraction",
        description="fraction: that share of the clients; bernoulli: each by its own probability; "
        "groups: by that of its group; clock: as often as its speed allows; trace: by a file",
    )
    value: Probability | list[Probability] = Field(
        1.0, description="the share, or one probability for all clients, or a list with one each"
    )
    groups: list[GroupSection] = Field([], description="of kind groups")
    known: bool = Field(
        True, description="whether the server knows the probabilities, or estimates them from who "
        "took part before; for strategies that weight by them",
    )  # fmt: skip
    spread: Annotated[float, Field(ge=0)] = Field(
        1.0, description="of kind clock: a client is done every exp(spread * |z|) rounds, z normal"
    )
    file: str | None = Field(
        None, description="of kind trace: a csv with columns round and client, from round 1 on"
    )

    @model_validator(mode="after")
    def _check(self) -> Participation:
        if self.kind == "fraction" and (isinstance(self.value, list) or self.value <= 0):
            raise ValueError("a fraction is one number in (0, 1]")
        if self.kind == "groups" and abs(sum(group.share for group in self.groups) - 1.0) > 1e-6:
            raise ValueError("the shares of groups must sum to 1")
        if (self.kind == "trace") != (self.file is not None):
            raise ValueError("kind 'trace' and file go together")
        return self


class ClientsSection(Section):
    """The federation's clients."""

    count: Annotated[int, Field(ge=1)] = 20
    partition: PartitionSection = PartitionSection()
    participation: Participation = Participation()
    weights: Literal["auto", "uniform", "reported", "capped"] = Field(
        "auto",
        description="how much an update counts; reported: by the client's number of examples; "
        "auto: the strategy's own; rules other than the mean give each client one vote",
    )
    max_weight: Annotated[int, Field(ge=1)] = Field(
        1000, description="the most examples that count under `capped`"
    )
    examples: Annotated[int, Field(ge=1)] = Field(
        32, description="examples that a client of builtin:synthetic or least-squares has"
    )
    holdout: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="share of a client's examples that it does not train on and is evaluated on; "
        "by default 0.2 with task.head = 'local', else none",
    )

    @property
    def held_share(self) -> float:
        """Share of its examples that a client with a local head evaluates on."""
        return self.holdout or LOCAL_HOLDOUT
