"""The backend of a server without the base: it trains and evaluates nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import Tensor, nn

from fedtune.adapters.layout import Tensors
from fedtune.cohort.backend import Setting
from fedtune.cohort.plan import ClientResult, ClientWork
from fedtune.errors import RunError
from fedtune.tasks.base import Inputs

REASON = "this server has only the shapes of the base; give task.test, and it loads the weights"


class AbsentBackend:
    """Knows the adapter's layout, and refuses all work."""

    name = "none"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def train(self, works: Sequence[ClientWork], server_round: int) -> list[ClientResult]:
        """Raise `RunError`."""
        raise RunError(REASON)

    def gradient(self, works: Sequence[ClientWork], step: int = 0) -> Tensor:
        """Raise `RunError`."""
        raise RunError(REASON)

    def logits(self, state: Tensors, inputs: Inputs) -> Tensor:
        """Raise `RunError`."""
        raise RunError(REASON)

    def holding(self, state: Tensors) -> AbstractContextManager[nn.Module]:
        """Raise `RunError`."""
        raise RunError(REASON)
