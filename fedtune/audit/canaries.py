"""Canaries: examples, or clients, of which each takes part with probability 1/2."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedtune.adversaries.poisoned import Poisoned
from fedtune.errors import Incompatible
from fedtune.privacy.streams import Streams
from fedtune.privacy.user import UserMechanism
from fedtune.randomness import generator
from fedtune.tasks.base import Batch, Rows
from fedtune.tasks.clients import DealtRows
from fedtune.tasks.load import Task


@dataclass(frozen=True)
class Canaries:
    """Examples that an auditor planted.

    Attributes:
        rows: of the training data, (m,).
        owners: the client that each would belong to, (m,).
        included: (m,), whether it does.
    """

    rows: Rows
    owners: NDArray[np.int64]
    included: NDArray[np.bool_]


def plant(task: Task, count: int, seed: int) -> tuple[Task, Canaries]:
    """Take examples from the clients, give them a wrong class, and give half of them back.

    A wrong class makes an example stand out: nothing else asks for its gradient.

    Raises:
        Incompatible: if there are too few examples, or none that can be taken.
    """
    if not isinstance(task.clients, DealtRows):
        raise Incompatible("audit: the clients' examples are made, not dealt; name a data set")
    dealt = np.concatenate([task.clients.rows(client) for client in task.clients.eligible])
    if count > len(dealt) // 2:
        raise Incompatible(
            f"--canaries = {count}: the clients hold {len(dealt)} examples; allowed: at most "
            f"{len(dealt) // 2}"
        )
    random = generator("canaries", seed)
    rows = np.sort(random.permutation(dealt)[:count])
    eligible = np.asarray(list(task.clients.eligible))
    owners = random.permutation(np.resize(eligible, count))
    included = random.random(count) < 0.5
    parts = [np.setdiff1d(part, rows, assume_unique=True) for part in task.clients.parts]
    for client in eligible:
        own = rows[(owners == client) & included]
        parts[client] = np.sort(np.concatenate([parts[client], own]))
    mask = torch.zeros(len(task.train), dtype=torch.bool)
    mask[torch.from_numpy(rows)] = True
    train = (
        Poisoned(task.train, mask, _WrongClass(len(task.classes))) if task.classes else task.train
    )
    planted = replace(task, train=train, clients=DealtRows(parts, without=task.server_rows))
    return planted, Canaries(rows, owners, included)


@dataclass(frozen=True)
class _WrongClass:
    """Class c becomes c + 1.

    Attributes:
        classes: C.
    """

    classes: int

    def __call__(self, batch: Batch) -> Batch:
        return Batch(batch.inputs, (batch.labels + 1) % self.classes)


class PlantedClients:
    """A user-level mechanism to which clients are added that always send the same direction.

    Args:
        inner: the mechanism.
        seed: of the directions, of norm 1; scaled to the clipping bound.
        included: (m,), which of them there are.
        rate: chance of each of them to take part in a round.
        streams: where who takes part comes from.
    """

    def __init__(
        self,
        inner: UserMechanism,
        seed: int,
        included: NDArray[np.bool_],
        rate: float,
        streams: Streams,
    ) -> None:
        self.inner, self.seed, self.included = inner, seed, included
        self.rate, self.streams = rate, streams
        self.scores = torch.zeros(len(included), dtype=torch.float64)

    @property
    def clip(self) -> float:
        """The mechanism's."""
        return self.inner.clip

    def __call__(self, updates: Tensor, server_round: int) -> Tensor:
        """The round's update; what it tells of each direction is added to `scores`."""
        drawn = self.streams.stream("canaries", server_round).random(len(self.included))
        taking_part = torch.from_numpy(self.included & (drawn < self.rate))
        bound, width = self.clip, updates.shape[1]  # factors may take turns
        theirs = directions(len(self.included), width, self.seed)
        sent = theirs[taking_part].to(updates) * bound
        update = self.inner(torch.cat([updates, sent]), server_round)
        found = theirs @ update.double().cpu()
        self.scores += found * (self.inner.expected / bound)
        return update

    def state_dict(self) -> dict[str, Tensor]:
        """The mechanism's."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The mechanism's."""
        self.inner.load_state_dict(state)


def directions(count: int, size: int, seed: int) -> Tensor:
    """Random unit vectors, (count, size), nearly orthogonal where there are fewer than numbers."""
    drawn = generator("directions", seed).normal(size=(count, size))
    return torch.nn.functional.normalize(torch.from_numpy(drawn), dim=1)
