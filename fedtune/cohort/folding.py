"""Clients' batches of a step as one: padded, with what is real marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedtune.cohort.backend import Setting
from fedtune.cohort.plan import PARTS
from fedtune.tasks.base import Batch, Rows

_NONE = np.empty(0, dtype=np.int64)
Step = Sequence[tuple[Rows, ...]]


def folded_batches(setting: Setting, steps: Step) -> Iterator[tuple[Batch, Tensor]]:
    """The clients' batches one after another: K·b examples, and which are real, (K, b).

    Args:
        steps: of each client, the batches of its step.
    """
    for micro in range(max(map(len, steps))):
        yield _gathered(setting, [b[micro] if micro < len(b) else _NONE for b in steps])


def folded_parts(setting: Setting, steps: Step) -> Iterator[tuple[Tensor, Tensor, Batch, Tensor]]:
    """Parts of private batches: whose each is, which of its parts, the examples, which are real.

    Each part is worked on as a client of its own, so that clients with more examples than others
    cost no padding. A step without any example has none: it is noise alone.
    """
    for first in range(0, max(map(len, steps)), 2 * PARTS):
        some = [
            (owner, place, part)
            for owner, parts in enumerate(steps)
            for place, part in enumerate(parts[first : first + 2 * PARTS], first)
        ]
        owners, places = (
            torch.tensor([one[i] for one in some], device=setting.device) for i in (0, 1)
        )
        yield owners, places, *_gathered(setting, [part for _, _, part in some])


def fold(batches: Sequence[Rows]) -> tuple[Rows, NDArray[np.bool_]]:
    """Pad batches to the longest: rows (K, b) and which of them are real, (K, b).

    A padding row repeats an example of the same step, so it is always one that can be computed.
    """
    width = max(len(batch) for batch in batches)
    spare = next(batch[0] for batch in batches if len(batch))
    rows = np.full((len(batches), width), spare, dtype=np.int64)
    valid = np.zeros((len(batches), width), dtype=np.bool_)
    for k, batch in enumerate(batches):
        rows[k, : len(batch)] = batch
        rows[k, len(batch) :] = batch[0] if len(batch) else spare
        valid[k, : len(batch)] = True
    return rows, valid


def _gathered(setting: Setting, batches: Sequence[Rows]) -> tuple[Batch, Tensor]:
    rows, valid = fold(batches)
    batch = setting.data.gather(torch.from_numpy(rows.ravel()).to(setting.device))
    return batch, torch.from_numpy(valid).to(setting.device)
