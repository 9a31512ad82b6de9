"""An in-process Flower grid: a round's messages go to one handler together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedtune.errors import ClientFailure
from fedtune.grids.compat import CLIENT_RAISED, Run, make_run, set_message_id, task_identity
from fedtune.grids.directory import Directory

RUN_ID = 1
FIRST_NODE = 2


class Clients(Protocol):
    """The client side of the grid."""

    def handle(self, messages: Sequence[tuple[int, Message]]) -> list[Message | ClientFailure]:
        """Answer messages to logical clients, in their order."""
        ...


class CohortGrid(Grid):
    """Runs clients in this process; strategies see a Flower grid.

    Args:
        clients: what answers: cohorts of ours, or a stranger's ClientApp one client at a time.
        ids: logical ids of the clients that can take part.
        on_error: `raise` stops at the first failing client; `skip` answers with Flower's `Error`.
    """

    def __init__(self, clients: Clients, ids: Iterable[int], on_error: str = "raise") -> None:
        self.clients, self.on_error = clients, on_error
        self._directory = Directory({client: client + FIRST_NODE for client in ids})
        self._run = make_run(RUN_ID)
        self._replies: dict[str, Message] = {}
        self._sent = 0

    @property
    def directory(self) -> Directory:
        """The grid's clients."""
        return self._directory

    @contextmanager
    def serving(self) -> Iterator[CohortGrid]:
        """Within it, strategies can make messages in this process."""
        with task_identity(self._run.run_id):
            yield self

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message of this run."""
        with self.serving():
            return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The node ids of all clients that can take part."""
        return [self._directory.node(client) for client in self._directory.clients]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer messages at once; the replies wait to be pulled. Ids are as long as Flower's."""
        pushed = list(messages)
        for message in pushed:
            self._sent += 1
            set_message_id(message, f"{self._sent:064x}")
        addressed = [(self._directory.client(m.metadata.dst_node_id), m) for m in pushed]
        answers = self.clients.handle(addressed) if addressed else []
        for message, answer in zip(pushed, answers, strict=True):
            self._replies[message.metadata.message_id] = self._reply(message, answer)
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to the messages of these ids."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Answer messages; replies in their order. There is nothing to wait for."""
        return self.pull_messages(self.push_messages(messages))

    def _reply(self, message: Message, answer: Message | ClientFailure) -> Message:
        if isinstance(answer, Message):
            set_message_id(answer, f"{self._sent + 1:064x}")
            return answer
        if self.on_error == "raise":
            raise answer
        return Message(Error(CLIENT_RAISED, f"{answer.stage}: {answer.reason}"), reply_to=message)
