"""`[compare]`: which variants of a scenario `fedtune compare` sets side by side."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedtune.scenario.claim import ClaimSection
from fedtune.scenario.section import Section

Values = list[Any]
RESERVED = ("run.seed", "task.validation")
PARENTS = ("run", "task")
VARIANT = "variant"


class BudgetSection(Section):
    """What all cells may spend alike."""

    kind: Literal["rounds", "bytes_up", "client_steps"] = Field(
        "rounds",
        description="rounds: run.rounds each; bytes_up: payload that clients send; client_steps: "
        "optimiser steps of all clients",
    )
    amount: Annotated[int, Field(ge=1)] | None = Field(
        None, description="bytes or steps; by default what the reference spends in run.rounds"
    )


class CompareSection(Section):
    """A comparison: the grid of all combinations of `over`, over seeds."""

    over: dict[str, Values] = Field(
        {},
        description="dotted keys to values; 'all' stands for every strategy, rule, ...; an "
        "attack with parameters is a table: { kind = 'gaussian', sigma = 1e6 }",
    )
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="an axis of its own, `variant`: names to dotted keys and their values"
    )
    seeds: Annotated[int, Field(ge=1, le=1000)] = Field(
        3, description="runs of each combination, under run.seed, run.seed + 1, ..."
    )
    tune: dict[str, Values] = Field(
        {}, description="dotted keys to values searched for each combination on validation data"
    )
    tune_seeds: Annotated[int, Field(ge=1)] = Field(1, description="seeds of that search")
    tune_at: dict[str, Values] = Field(
        {}, description="axes of over with the values that the search looks at; by default all"
    )
    worst_over: list[str] = Field(
        [], description="axes of over that nobody gets to choose, such as attack.kind: "
        "combinations that differ in these alone share the choice whose worst score is best",
    )  # fmt: skip
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.2, description="share of each client's examples that the search holds out"
    )
    budget: BudgetSection = BudgetSection()
    reference: dict[str, Any] = Field(
        {}, description="the combination others are compared with; by default the first"
    )
    metric: str | None = Field(
        None, description="what decides; by default accuracy or perplexity on the test data"
    )
    target: float | None = Field(
        None, description="value of the metric whose cost is counted; by default 95 % of the way "
        "from the reference's first to its final value",
    )  # fmt: skip
    claim: ClaimSection | None = Field(
        None, description="what the comparison is to show; its report has the verdict"
    )

    @model_validator(mode="after")
    def _check(self) -> CompareSection:
        for name, axes in (("over", self.over), ("tune", self.tune)):
            for key, values in axes.items():
                if key in RESERVED or key == VARIANT or key.startswith("compare"):
                    raise ValueError(f"{name}: {key} cannot be an axis")
                if not values:
                    raise ValueError(f"{name}: {key} has no values")
                if len({repr(value) for value in values}) < len(values):
                    raise ValueError(f"{name}: {key} names a value twice")
        if both := sorted(self.over.keys() & self.tune.keys()):
            raise ValueError(f"{both[0]} is in over and in tune")
        for name, own in self.variants.items():
            if fixed := [k for k in own if k.startswith((*RESERVED, "compare")) or k in PARENTS]:
                raise ValueError(f"variants.{name}: {fixed[0]} cannot vary")
            if both := sorted(own.keys() & (self.over.keys() | self.tune.keys())):
                raise ValueError(f"variants.{name}: {both[0]} is in over or in tune, too")
        if unknown := sorted(self.reference.keys() - self.axes.keys()):
            raise ValueError(f"reference: {unknown[0]} is not an axis of over")
        for name, keys in (("tune_at", self.tune_at), ("worst_over", self.worst_over)):
            for key in keys:
                if key not in self.axes:
                    raise ValueError(f"{name}: {key} is not an axis")
        for key, values in self.tune_at.items():
            if key not in self.worst_over:
                raise ValueError(f"tune_at: {key} must be in worst_over, to share what is chosen")
            for value in values:
                if self.axes[key] != ["all"] and value not in self.axes[key]:
                    raise ValueError(f"tune_at: {key} = {value!r} is not one of {self.axes[key]}")
        for key, value in self.reference.items():
            if self.axes[key] != ["all"] and value not in self.axes[key]:
                raise ValueError(f"reference: {key} = {value!r} is not one of {self.axes[key]}")
        return self

    @property
    def axes(self) -> dict[str, Values]:
        """`variant`, where there are any, and what `over` says."""
        return {**({VARIANT: list(self.variants)} if self.variants else {}), **self.over}
