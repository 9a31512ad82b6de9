"""`[local]`: what a client does in a round."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedtune.scenario.section import Beta, Section, Share, incompatible


class EarlyStopping(Section):
    """Stop when the watched loss has not fallen by `min_delta` for `patience` looks."""

    patience: Annotated[int, Field(ge=1)] = 3
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class LocalSection(Section):
    """A client's training in one round."""

    steps: Annotated[int, Field(ge=1)] | None = Field(None, description="optimiser steps")
    epochs: Annotated[int, Field(ge=1)] | None = Field(None, description="passes over its data")
    batch_size: Annotated[int, Field(ge=1)] = 16
    accumulation: Annotated[int, Field(ge=1)] = Field(
        1, description="batches whose gradients make one optimiser step"
    )
    group_by_length: bool = Field(
        False,
        description="make batches of examples of like length, and let clients meet short and "
        "long ones in step",
    )
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    client_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="b in m = b m + (1 - b) update, which a client keeps over rounds and sends "
        "instead of its update",
    )
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = Field([0.9, 0.999])
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] | None = Field(
        None, description="largest L2 norm of a client's gradient over all it trains"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="of the learning rate, within a round"
    )
    warmup: Annotated[int, Field(ge=0)] = Field(0, description="warm-up steps of a round")
    round_schedule: Literal["constant", "linear", "cosine", "exponential"] = Field(
        "constant", description="of the learning rate, over the rounds"
    )
    schedule_rounds: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="rounds that `linear` and `cosine` over the rounds are made for, and the first "
        "step of lora-sb; auto: run.rounds when the run begins, and the same when it is "
        "lengthened; in later rounds the rate stays what it was in the last of them",
    )
    round_decay: Share = Field(0.99, description="the factor a round of `exponential`")
    early_stopping: EarlyStopping | None = Field(
        None, description="a client watches its own training loss, epoch by epoch"
    )

    @model_validator(mode="after")
    def _check(self) -> LocalSection:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.momentum and self.optimizer != "sgd":
            raise incompatible(f"momentum is for optimizer 'sgd', not '{self.optimizer}'")
        if self.steps is None and self.epochs is None:
            self.epochs = 1
        return self
