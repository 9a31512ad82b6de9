"""What the two backends share: one function, `train`, and how logits are got."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fedtune.adapters.layout import Layout, Tensors
from fedtune.adapters.wrap import Adapted, master_dtype
from fedtune.cohort.per_example import Way
from fedtune.cohort.plan import ClientResult, ClientWork
from fedtune.scenario.local import LocalSection
from fedtune.tasks.base import Data, Inputs, Objective


@dataclass(frozen=True)
class Setting:
    """What training needs besides the clients' work.

    Attributes:
        adapted: base model with adapter.
        objective: forward pass, losses, scores.
        data: the training examples.
        local: the scenario's `[local]`.
        rounds: rounds of the run, for schedules over rounds.
        device: where it runs.
        dtype: compute precision of the base.
        per_example: how gradients of single examples are got, where training is private.
    """

    adapted: Adapted
    objective: Objective
    data: Data
    local: LocalSection
    rounds: int
    device: torch.device
    dtype: torch.dtype
    per_example: Way = "auto"

    @property
    def layout(self) -> Layout:
        """The adapter's tensors."""
        return self.adapted.layout

    @property
    def master(self) -> torch.dtype:
        """Precision of adapters and optimiser state."""
        return master_dtype(self.dtype)


class Backend(Protocol):
    """Trains clients; `cohort` and `sequential` agree as docs/architecture.md defines equal."""

    name: str
    setting: Setting

    def train(self, works: Sequence[ClientWork], server_round: int) -> list[ClientResult]:
        """Train one cohort; results in the order of `works`."""
        ...

    def gradient(self, works: Sequence[ClientWork], step: int = 0) -> Tensor:
        """The gradient of each client's loss at a step from its start, (K, P)."""
        ...

    def logits(self, state: Tensors, inputs: Inputs) -> Tensor:
        """The output of the model with the given trained tensors, without gradients."""
        ...

    def holding(self, state: Tensors) -> AbstractContextManager[nn.Module]:
        """The model with the given trained tensors in place, for as long as the context lasts."""
        ...
