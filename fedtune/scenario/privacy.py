"""`[privacy]`: who is protected against whom, and how much."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedtune.scenario.section import Section, Share, incompatible

Count = Annotated[int, Field(ge=1)]


class AdaptiveClip(Section):
    """The clipping bound follows a quantile of the updates' norms (Andrew et al., 2021)."""

    quantile: Share = Field(0.5, description="share of the updates that shall not be clipped")
    rate: Annotated[float, Field(gt=0)] = Field(0.2, description="of the bound's change a round")
    count_noise: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="standard deviation of the noise on the number of unclipped updates; auto: a "
        "twentieth of the expected clients of a round",
    )


class PrivacySection(Section):
    """Differential privacy."""

    mechanism: Literal["none", "example", "user"] = Field(
        "none",
        description="example: DP-SGD at each client hides each of its examples from all others; "
        "user: noise at a trusted server hides each client from those who see the model",
    )
    epsilon: Annotated[float, Field(gt=0)] | None = Field(
        None, description="what may be spent in all; the noise follows from it"
    )
    noise_multiplier: Annotated[float, Field(ge=0)] | None = Field(
        None, description="z: the noise has standard deviation z * clip; instead of epsilon"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        1e-5, description="less than one over the examples of a client, or over the clients"
    )
    clip: Annotated[float, Field(gt=0, allow_inf_nan=True)] = Field(
        1.0,
        description="largest norm of an example's gradient over all that is trained, or of a "
        "client's update",
    )
    accountant: Literal["rdp", "prv"] = Field(
        "rdp", description="prv is tighter, and takes seconds where rdp takes none"
    )
    max_participations: Count | Literal["auto"] = Field(
        "auto",
        description="rounds that a client's epsilon is to last for; auto: the expected number and "
        "three standard deviations",
    )
    rounds: Count | Literal["auto"] = Field(
        "auto", description="rounds that epsilon is planned for; auto: run.rounds"
    )
    opening_share: Share = Field(
        0.1, description="share of epsilon for what lora-sb asks of clients before round 1"
    )
    per_example: Literal["auto", "hooks", "ghost"] = Field(
        "auto",
        description="hooks: gradients of single examples are made; ghost: their norms only; auto: "
        "what is cheaper, tensor by tensor",
    )
    public_counts: bool = Field(
        False, description="numbers of examples are no secret: clients report them"
    )
    adaptive: AdaptiveClip | None = Field(
        None, description="of mechanism user: the bound changes from round to round"
    )
    ledger: str | None = Field(
        None,
        description="file of what clients have spent on this data, over all runs that name it; by "
        "default the run's own",
    )
    deterministic_randomness: bool = Field(
        False, description="noise and sampling from run.seed: for tests, not private"
    )

    @model_validator(mode="after")
    def _check(self) -> PrivacySection:
        if self.mechanism == "none":
            return self._without()
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                f"mechanism = {self.mechanism!r} needs epsilon or noise_multiplier, and not both"
            )
        if math.isinf(self.clip) and self.noise_multiplier != 0.0:
            raise ValueError("clip = inf: only with noise_multiplier = 0, which protects nobody")
        if math.isnan(self.clip):
            raise ValueError("clip = nan: give a positive number")
        if self.adaptive is not None and self.mechanism != "user":
            raise ValueError("adaptive: is for mechanism 'user'")
        if self.max_participations != "auto" and self.mechanism == "user":
            raise ValueError("max_participations: is for mechanism 'example'; give rounds")
        if self.public_counts and self.mechanism == "user":
            raise ValueError("public_counts: is for mechanism 'example'; users count alike")
        return self

    def _without(self) -> PrivacySection:
        """What promises privacy, and no mechanism that keeps it."""
        for key in ("epsilon", "noise_multiplier", "adaptive"):
            if getattr(self, key) is not None:
                raise incompatible(
                    f"privacy.{key}: has no effect with privacy.mechanism = 'none'; allowed: "
                    "mechanism 'example' or 'user', or leave it out"
                )
        return self
