"""Anybody's Flower ClientApp as the client side of the in-process grid."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from fedtune.errors import ClientFailure
from fedtune.grids.compat import with_content


class AppClients:
    """Runs a ClientApp unchanged, one client at a time, as Flower's simulation does.

    Each client has its own `Context`, whose state lasts over messages, with `partition-id` and
    `num-partitions` in its node config; each message is the app's own copy.

    Args:
        app: the ClientApp.
        count: number of clients.
        run_config: the run's configuration, as `[tool.flwr.app.config]` would give it.
    """

    def __init__(self, app: ClientApp, count: int, run_config: UserConfig | None = None) -> None:
        self.app, self.count = app, count
        self.run_config = run_config or {}
        self._contexts: dict[int, Context] = {}

    def handle(self, messages: Sequence[tuple[int, Message]]) -> list[Message | ClientFailure]:
        """Answer messages to logical clients, in their order."""
        return [self._answer(client, message) for client, message in messages]

    def _answer(self, client: int, message: Message) -> Message | ClientFailure:
        own = with_content(message, copy.deepcopy(message.content))
        try:
            answer = self.app(own, self._context(client, message))
            if not isinstance(answer, Message):
                raise TypeError(f"the app answered with {type(answer).__name__}, not a Message")
            return answer
        except Exception as error:
            return ClientFailure(client, message.metadata.message_type, error)

    def _context(self, client: int, message: Message) -> Context:
        if client not in self._contexts:
            self._contexts[client] = Context(
                run_id=message.metadata.run_id,
                node_id=message.metadata.dst_node_id,
                node_config={"partition-id": client, "num-partitions": self.count},
                state=RecordDict(),
                run_config=dict(self.run_config),
            )
        return self._contexts[client]
