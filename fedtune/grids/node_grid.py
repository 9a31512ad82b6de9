"""Flower's own grid (Simulation Runtime, SuperLink) with logical clients behind its nodes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedtune.errors import ClientFailure, RunError
from fedtune.grids.compat import Run
from fedtune.grids.directory import Directory
from fedtune.grids.replies import DECLINED, reason_of

CONFIG = "config"
CLIENT, COUNT = "client-id", "num-partitions"
PATIENCE, PAUSE = 60.0, 0.2


class NodeGrid(Grid):
    """Passes messages to Flower's grid; learns once which client is behind which node.

    Args:
        inner: Flower's grid.
        count: clients that the scenario has.
        eligible: ids of those that hold examples.
        on_error: `raise` stops at the first client that failed; `skip` goes on without it.
    """

    clients_keep_their_own = False  # rather: in the run directory

    def __init__(
        self, inner: Grid, count: int, eligible: Sequence[int], on_error: str = "raise"
    ) -> None:
        self.inner, self.count, self.on_error = inner, count, on_error
        self.eligible = eligible
        self._directory: Directory | None = None

    @property
    def directory(self) -> Directory:
        """The grid's clients."""
        if self._directory is None:
            self._directory = self._learn()
        return self._directory

    @contextmanager
    def serving(self) -> Iterator[NodeGrid]:
        """Flower's processes can make messages at any time."""
        yield self

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
        """The node ids of all clients that can take part."""
        return [self.directory.node(client) for client in self.directory.clients]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on."""
        return self._checked(self.inner.pull_messages(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Pass on; replies come in any order."""
        return self._checked(self.inner.send_and_receive(messages, timeout=timeout))

    def _checked(self, replies: Iterable[Message]) -> list[Message]:
        passed = list(replies)
        for reply in passed:
            stops = reply.has_error() and reply.error.code != DECLINED
            if stops and self.on_error == "raise":
                client = self.directory.client(reply.metadata.src_node_id)
                raise ClientFailure(client, "its process", reason_of(reply))
        return passed

    def _learn(self) -> Directory:
        nodes = self._wait_for_nodes()
        kind = MessageType.QUERY
        asked = [Message(RecordDict({CONFIG: ConfigRecord({})}), node, kind) for node in nodes]
        found: dict[int, int] = {}
        for reply in self.inner.send_and_receive(asked):
            if reply.has_error():
                raise RunError(f"a node cannot say which client it is: {reason_of(reply)}")
            try:
                client = int(str(reply.content[CONFIG][CLIENT]))
            except (KeyError, ValueError) as error:
                raise RunError(
                    f"a node's answer does not say which client it is: {error}"
                ) from None
            if client in found:
                raise RunError(f"two nodes say that they are client {client}")
            found[client] = reply.metadata.src_node_id
        if missing := set(self.eligible) - found.keys():
            raise RunError(f"no node is client {min(missing)}")
        return Directory({client: found[client] for client in self.eligible})

    def _wait_for_nodes(self) -> list[int]:
        nodes: list[int] = []
        for _ in range(int(PATIENCE / PAUSE)):
            nodes = list(self.inner.get_node_ids())
            if len(nodes) == self.count:
                return nodes
            time.sleep(PAUSE)
        raise RunError(
            f"the federation has {len(nodes)} nodes and clients.count is {self.count}; start it "
            f"with as many: --federation-config 'num-supernodes={self.count}'"
        )
