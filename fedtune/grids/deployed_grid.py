"""The grid of a deployment: clients that come late, go, come back, or never answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedtune.errors import RunError
from fedtune.grids.directory import Directory
from fedtune.grids.node_grid import NodeGrid
from fedtune.scenario.deploy import DeploySection

PAUSE, SAID_EVERY = 0.3, 30.0
Tell = Callable[..., None]


class DeployedGrid(NodeGrid):
    """Flower's grid of a SuperLink whose registered nodes are known by client id.

    Messages to clients that are not connected are not sent: these are lost for the round.

    Args:
        inner: Flower's grid.
        nodes: node id of each registered client; so an id belongs to a key, and no other node can
            take it.
        section: the scenario's `[deploy]`.
        tell: takes an event's name and facts, for the log.
    """

    clients_keep_their_own = True

    def __init__(
        self, inner: Grid, nodes: Mapping[int, int], section: DeploySection, tell: Tell
    ) -> None:
        super().__init__(inner, len(nodes), sorted(nodes), on_error="skip")
        self.nodes, self.section, self.tell = dict(nodes), section, tell
        self._seen: set[int] | None = None

    def connected(self) -> list[int]:
        """Ids of the clients that are connected now; changes are told."""
        online = set(self.inner.get_node_ids())
        found = {client for client in self.eligible if self.nodes[client] in online}
        if found != self._seen:
            before = self._seen or set()
            self.tell(
                "connected", clients=sorted(found), came=sorted(found - before),
                gone=sorted(before - found),
            )  # fmt: skip
            self._seen = found
        return sorted(found)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send to who is there, as soon as enough are; replies in any order, within the time."""
        asked = [(self.directory.client(m.metadata.dst_node_id), m) for m in messages]
        if not asked:
            return []
        wanted, seconds = {client for client, _ in asked}, timeout or self.section.round_timeout
        there = wanted & self._wait()
        sent = self._push([one for one in asked if one[0] in there], seconds)
        replies = self._pull(set(sent.values()), seconds)
        answered = {reply.metadata.reply_to_message_id for reply in replies}
        silent = sorted(client for client, message in sent.items() if message not in answered)
        if lost := sorted({*silent, *(wanted - sent.keys())}):
            self.tell("lost", clients=lost, silent=silent)
        return self._checked(replies)

    def _push(self, asked: list[tuple[int, Message]], seconds: float) -> dict[int, str]:
        """Message ids by client; what is not fetched in time is not delivered any more."""
        for _, message in asked:
            message.metadata.ttl = seconds
        ids = list(self.inner.push_messages([message for _, message in asked])) if asked else []
        if len(ids) != len(asked):
            self.tell("not taken", clients=[client for client, _ in asked])
            return {}
        return {client: taken for (client, _), taken in zip(asked, ids, strict=True) if taken}

    def _pull(self, waiting: set[str], seconds: float) -> list[Message]:
        """Replies as they come, until all are there or time is up."""
        deadline, found = time.monotonic() + seconds, []
        while waiting and time.monotonic() < deadline:
            for reply in self.inner.pull_messages(waiting):
                found.append(reply)
                waiting.discard(reply.metadata.reply_to_message_id)
            if waiting:
                time.sleep(PAUSE)
        return found

    def _wait(self) -> set[int]:
        """The clients that are connected, once there are enough of them."""
        least, said = min(self.section.min_clients, len(self.eligible)), -SAID_EVERY
        while len(there := self.connected()) < least:
            if time.monotonic() - said >= SAID_EVERY:
                self.tell("waiting", connected=there, needed=least)
                said = time.monotonic()
            time.sleep(PAUSE)
        return set(there)

    def _learn(self) -> Directory:
        unknown = set(self.eligible) - self.nodes.keys()
        if unknown:
            raise RunError(f"no node is registered for client {min(unknown)}")
        deadline = time.monotonic() + self.section.join_timeout
        while len(self.connected()) < len(self.eligible) and time.monotonic() < deadline:
            time.sleep(PAUSE)
        return Directory({client: self.nodes[client] for client in self.eligible})


def nodes_of(text: str) -> dict[int, int]:
    """Client ids and node ids, as `nodes_text` wrote them."""
    pairs = [pair.split(":") for pair in text.split(",") if pair]
    return {int(client): int(node) for client, node in pairs}


def nodes_text(nodes: Mapping[int, Any]) -> str:
    """Client ids and node ids as one word of a run configuration."""
    return ",".join(f"{client}:{node}" for client, node in sorted(nodes.items()))
