"""A grid around a grid: what passes can be counted or changed, and strategies never know of it."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedtune.grids.compat import Run
from fedtune.grids.directory import Directory, directory_of


class GridWrapper(Grid):
    """Passes everything on; a subclass overrides `outgoing` and `incoming`.

    Args:
        inner: the grid that does the work.
    """

    def __init__(self, inner: Grid) -> None:
        self.inner = inner

    def outgoing(self, messages: list[Message]) -> list[Message]:
        """Messages on their way to clients."""
        return messages

    def incoming(self, replies: list[Message]) -> list[Message]:
        """Replies on their way to the strategy."""
        return replies

    def trained(self, replies: Iterable[Message]) -> list[tuple[int, Message]]:
        """The training replies of clients that are no errors, with the clients' ids."""
        return [
            (self.directory.client(m.metadata.src_node_id), m)
            for m in replies
            if m.metadata.message_type == MessageType.TRAIN
            and not m.has_error()
            and self.directory.knows(m.metadata.src_node_id)
        ]

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
        """Pass on what `outgoing` makes of them."""
        return self.inner.push_messages(self.outgoing(list(messages)))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """What `incoming` makes of the replies."""
        return self.incoming(list(self.inner.pull_messages(message_ids)))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Both ways."""
        sent = self.outgoing(list(messages))
        return self.incoming(list(self.inner.send_and_receive(sent, timeout=timeout)))
