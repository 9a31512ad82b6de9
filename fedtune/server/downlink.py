"""What a message to each client holds: not what the client holds already."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedtune.apps.held import HELD, digest_of, group_of
from fedtune.grids.arrays import to_record


class Downlink:
    """The tensors of a round and, by group, which version of them each client was sent last.

    Args:
        remember: whether clients keep groups of tensors; without it everything is always sent.

    Attributes:
        tensors: of the round, whether sent or held.
    """

    def __init__(self, remember: bool = False) -> None:
        self.remember = remember
        self.tensors: dict[str, Tensor] = {}
        self._versions: dict[str, str] = {}
        self._held: dict[str, dict[int, str]] = {}
        self._records: dict[frozenset[str], ArrayRecord] = {}
        self._digests: dict[str, tuple[dict[str, Tensor], str]] = {}

    def offer(self, tensors: dict[str, Tensor], grouped: bool) -> None:
        """Settle what a round sends, and whether groups of it are kept by clients."""
        self.tensors, self._records, self._versions = tensors, {}, {}
        if not (grouped and self.remember):
            return
        groups = sorted({group for name in tensors if (group := group_of(name)) is not None})
        for group in groups:
            self._versions[group] = self._digest(group)

    def record(self, client: int) -> tuple[ArrayRecord, dict[str, str]]:
        """The tensors that a client is sent, and the version of each group that clients keep.

        Clients that hold the same share one record.
        """
        known = frozenset(
            group
            for group, version in self._versions.items()
            if self._held.get(group, {}).get(client) == version
        )
        if known not in self._records:
            self._records[known] = to_record(
                {n: t for n, t in self.tensors.items() if group_of(n) not in known}
            )
        return self._records[known], {HELD + group: v for group, v in self._versions.items()}

    def arrived(self, clients: Iterable[int]) -> None:
        """Replies of these clients show that they have what they were sent."""
        for client in clients:
            for group, version in self._versions.items():
                self._held.setdefault(group, {})[client] = version

    def forget(self, clients: Iterable[int]) -> None:
        """These clients are sent everything next time."""
        for held in self._held.values():
            for client in clients:
                held.pop(client, None)

    def state_dict(self) -> dict[str, Tensor]:
        """Client ids and versions by group, (clients, 2) int64."""
        return {
            group: torch.tensor([[c, _number(v)] for c, v in sorted(held.items())])
            for group, held in self._held.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self._held = {
            group: {client: _text(version) for client, version in rows.tolist()}
            for group, rows in state.items()
        }

    def _digest(self, group: str) -> str:
        own = {n: t for n, t in self.tensors.items() if group_of(n) == group}
        before, digest = self._digests.get(group, ({}, ""))
        if _places(own) != _places(before):
            digest = digest_of(own)
            self._digests[group] = (own, digest)
        return digest


def _places(tensors: dict[str, Tensor]) -> list[tuple[str, int, int]]:
    """Where tensors lie, and how often they were changed there."""
    return [(name, t.data_ptr(), t._version) for name, t in tensors.items()]


def _number(version: str) -> int:
    return int(version, 16) - (1 << 63)


def _text(number: int) -> str:
    return f"{number + (1 << 63):016x}"
