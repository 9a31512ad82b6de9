"""A grid wrapper that counts the bytes that pass."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from fedtune.grids.sizes import Size, message_size
from fedtune.grids.wrapper import GridWrapper


class MeteredGrid(GridWrapper):
    """Counts the bytes down and up of each type of message."""

    def __init__(self, inner: Grid) -> None:
        super().__init__(inner)
        self._down: dict[str, Size] = {}
        self._up: dict[str, Size] = {}

    def take(self, message_type: str) -> tuple[Size, Size]:
        """Bytes down and up of a type of message since the last call."""
        return self._down.pop(message_type, Size()), self._up.pop(message_type, Size())

    def outgoing(self, messages: list[Message]) -> list[Message]:
        """Count them."""
        _count(messages, self._down)
        return messages

    def incoming(self, replies: list[Message]) -> list[Message]:
        """Count them."""
        _count(replies, self._up)
        return replies


def _count(messages: Iterable[Message], totals: dict[str, Size]) -> None:
    for message in messages:
        kind = message.metadata.message_type
        totals[kind] = totals.get(kind, Size()) + message_size(message)
