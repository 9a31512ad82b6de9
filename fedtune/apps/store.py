"""What a client keeps between messages (a local head)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

Kept = dict[str, Tensor]


class ClientStore(Protocol):
    """State of clients, keyed by logical id; in a simulation part of the run's checkpoints."""

    def get(self, client: int) -> Kept | None:
        """What a client kept, or None before its first round."""
        ...

    def put(self, client: int, kept: Kept) -> None:
        """Replace what a client keeps."""
        ...


class MemoryStore:
    """All clients' state in this process."""

    def __init__(self) -> None:
        self.kept: dict[int, Kept] = {}

    def get(self, client: int) -> Kept | None:
        """What a client kept, or None before its first round."""
        return self.kept.get(client)

    def put(self, client: int, kept: Kept) -> None:
        """Replace what a client keeps."""
        self.kept[client] = kept

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as `client/name` keys."""
        return {f"{c}/{n}": t for c, kept in self.kept.items() for n, t in kept.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self.kept = {}
        for key, tensor in state.items():
            client, name = key.split("/", 1)
            self.kept.setdefault(int(client), {})[name] = tensor
