"""A grid wrapper that counts the bytes that pass; strategies never know of it."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedtune.grids.compat import Run
from fedtune.grids.directory import Directory, directory_of
from fedtune.grids.sizes import Size, message_size


class MeteredGrid(Grid):
    """Counts the bytes down and up of each type of message.

    Args:
        inner: the grid that does the work.
    """

    def __init__(self, inner: Grid) -> None:
        self.inner = inner
        self._down: dict[str, Size] = {}
        self._up: dict[str, Size] = {}

    def take(self, message_type: str) -> tuple[Size, Size]:
        """Bytes down and up of a type of message since the last call."""
        return self._down.pop(message_type, Size()), self._up.pop(message_type, Size())

    @property
    def directory(self) -> Directory:
        """The clients of the grid within."""
        return directory_of(self.inner)

    def set_run(self, run: Run) -> None:
        """Pass on."""
        self.inner.set_run(run)

    @property
    def run(self) -> Run:
        """Pass on."""
        return self.inner.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Pass on."""
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Pass on."""
        return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on, counting."""
        return self.inner.push_messages(_counted(messages, self._down))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on, counting."""
        return _counted(self.inner.pull_messages(message_ids), self._up)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Pass on, counting both ways."""
        sent = _counted(messages, self._down)
        return _counted(self.inner.send_and_receive(sent, timeout=timeout), self._up)


def _counted(messages: Iterable[Message], totals: dict[str, Size]) -> list[Message]:
    passed = list(messages)
    for message in passed:
        kind = message.metadata.message_type
        totals[kind] = totals.get(kind, Size()) + message_size(message)
    return passed
