"""`[compare.claim]`: what a paper says, as parts that a comparison's results show or do not."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedtune.scenario.section import Section

Pick = dict[str, Any]


class ClaimPart(Section):
    """One statement on two sides of a comparison, each the families with these values.

    Where several are, `across` brings them to one value a seed. A list stands for any member of it.
    """

    says: str = Field(description="what is to be shown, in a sentence")
    left: Pick = Field({}, description="axes of compare.over with the values of the one side")
    right: Pick = Field({}, description="and of the other")
    measure: str = Field("final", description="what is looked at: a measure of comparison.json")
    across: Literal["mean", "worst", "best", "drop"] = Field(
        "mean",
        description="of a side's families; best, worst: the one with that mean over seeds; drop: "
        "the best less the mean of all",
    )
    test: Literal["better", "no-worse", "ratio"] = Field(
        "better",
        description="better: left ahead of right in a paired t test; no-worse: left not behind by "
        "`margin` (one-sided); ratio: left over right within `between` under every seed",
    )
    margin: float = Field(0.0, ge=0, description="of no-worse, in units of the measure")
    between: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        None, description="bounds of ratio"
    )
    less_is_better: bool | None = Field(
        None, description="by default so for losses and costs, and of what across = 'drop' gives"
    )

    @model_validator(mode="after")
    def _check(self) -> ClaimPart:
        if (self.test == "ratio") != (self.between is not None):
            raise ValueError("between: belongs to test = 'ratio', which needs it")
        if self.test == "no-worse" and not self.margin:
            raise ValueError("margin: test = 'no-worse' needs it: what difference would not matter")
        return self


class ClaimSection(Section):
    """A claim of a paper, and the parts that decide whether it is shown."""

    paper: str = Field(description="the source")
    says: str = Field(description="the claim, in a sentence")
    parts: list[ClaimPart] = Field(min_length=1)
