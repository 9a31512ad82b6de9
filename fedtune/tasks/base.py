"""What local training needs of a task: data by row, a forward pass, losses and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Inputs = dict[str, Tensor]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Examples as the model takes them.

    Attributes:
        inputs: keyword arguments of the model's forward, each (n, ...).
        labels: (n,) classes or (n, positions) tokens.
    """

    inputs: Inputs
    labels: Tensor


class Data(Protocol):
    """Examples of one split, addressed by row."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Every row's class, where they are known without making the examples."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def widths(self, rows: Rows) -> Rows:
        """Positions that each row fills (tokens); 1 where all rows are of one size."""
        ...

    def gather(self, rows: Tensor) -> Batch:
        """The examples of the rows, an int64 tensor (n,), on its device."""
        ...


@runtime_checkable
class Images(Protocol):
    """Data that are images."""

    @property
    def white(self) -> Tensor:
        """The largest value of a pixel, (channels, 1, 1)."""
        ...


class Objective(Protocol):
    """Forward pass, losses and scores of a kind of task."""

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """The model's output for a batch."""
        ...

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Each example's loss, summed over its counted units, (n,), at least float32."""
        ...

    def counts(self, labels: Tensor) -> Tensor:
        """Each example's counted units: 1, or its unmasked tokens, (n,)."""
        ...

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Each example's metrics summed over its counted units, (n,) each."""
        ...

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """The means over all units, with what follows from them."""
        ...


class Classification:
    """Cross-entropy over classes; the metric is accuracy."""

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Class scores, (n, classes)."""
        out: Tensor = model(**inputs).logits
        return out

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Each example's cross-entropy, (n,)."""
        return F.cross_entropy(at_least_float32(logits), labels, reduction="none")

    def counts(self, labels: Tensor) -> Tensor:
        """One an example."""
        return torch.ones(len(labels), device=labels.device)

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Whether each example is right, (n,)."""
        return {"accuracy": (logits.argmax(-1) == labels).double()}

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """The means as they are."""
        return means


@dataclass
class Table:
    """A split held in memory.

    Attributes:
        inputs: the model's inputs, each (rows, ...).
        targets: (rows,) or (rows, positions).
        lengths: used positions of each row, where inputs are padded sequences; a batch is cut to
            its longest.
    """

    inputs: Inputs
    targets: Tensor
    lengths: Tensor | None = None

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Every row's class."""
        return self.targets.cpu().numpy() if self.targets.dim() == 1 else None

    def __len__(self) -> int:
        return len(self.targets)

    def widths(self, rows: Rows) -> Rows:
        """Used positions of each row."""
        if self.lengths is None:
            return np.ones(len(rows), dtype=np.int64)
        return self.lengths.cpu().numpy()[rows]

    def to(self, device: torch.device, dtype: torch.dtype) -> Table:
        """On a device, floating inputs in the compute precision."""
        inputs = {
            name: t.to(device=device, dtype=dtype if t.is_floating_point() else t.dtype)
            for name, t in self.inputs.items()
        }
        lengths = None if self.lengths is None else self.lengths.to(device)
        return Table(inputs, self.targets.to(device), lengths)

    def gather(self, rows: Tensor) -> Batch:
        """The examples of the rows."""
        inputs = {name: t.index_select(0, rows) for name, t in self.inputs.items()}
        targets = self.targets.index_select(0, rows)
        if self.lengths is not None:
            longest = int(self.lengths.index_select(0, rows).max())
            inputs = {name: t[:, :longest] for name, t in inputs.items()}
            targets = targets[:, :longest] if targets.dim() > 1 else targets
        return Batch(inputs, targets)


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits in a precision that a loss can be summed in."""
    return logits if logits.dtype == torch.float64 else logits.float()
