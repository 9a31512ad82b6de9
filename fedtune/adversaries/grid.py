"""A grid wrapper in which malicious clients send something else than what they trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid
from torch import Tensor

from fedtune.adversaries.crafted import Attack, Knowledge
from fedtune.grids.arrays import records, to_record, to_tensors
from fedtune.grids.wrapper import GridWrapper
from fedtune.randomness import key_of

Aggregate = Callable[[Tensor], Tensor]


class AttackGrid(GridWrapper):
    """Replaces the updates of malicious clients, knowing those of honest ones.

    An update is the difference to what its own client was sent, which noise may have changed.

    Args:
        inner: the grid that does the work.
        attack: makes the malicious updates.
        malicious: logical ids.
        everything: whether the attacker knows all honest updates of a round, or only what its
            own clients would have sent.
        aggregate: the deployed rule, for adaptive attacks.
        seed: of the run.
        held: gives the tensors that messages leave out because clients hold them.
    """

    def __init__(
        self,
        inner: Grid,
        attack: Attack,
        malicious: Sequence[int],
        everything: bool,
        aggregate: Aggregate,
        seed: int,
        held: Callable[[], Mapping[str, Tensor]] = dict,
    ) -> None:
        super().__init__(inner)
        self.attack, self.malicious = attack, frozenset(malicious)
        self.everything, self.aggregate, self.seed = everything, aggregate, seed
        self.held = held
        self._sent: dict[int, Mapping[str, Tensor]] = {}
        self._round = 0

    def outgoing(self, messages: list[Message]) -> list[Message]:
        """See what each client is sent."""
        asked = [m for m in messages if m.metadata.message_type == MessageType.TRAIN]
        if not asked:
            return messages
        server_round, held = int(str(asked[0].content["config"]["server-round"])), self.held()
        if server_round != self._round:
            self._round, self._sent = server_round, {}
        seen: dict[int, Mapping[str, Tensor]] = {}  # many clients share one record
        for message in asked:
            record = records(message.content, ArrayRecord)[0]
            if id(record) not in seen:
                seen[id(record)] = {**held, **to_tensors(record)}
            client = self.directory.client(message.metadata.dst_node_id)
            if self.everything or client in self.malicious:
                self._sent[client] = seen[id(record)]
        return messages

    def incoming(self, replies: list[Message]) -> list[Message]:
        """Craft the malicious replies; errors pass as they are."""
        answered = self.trained(replies)
        mine = [(client, message) for client, message in answered if client in self.malicious]
        if not mine:
            return replies
        known = [(client, m) for client, m in answered if client not in self.malicious]
        if not self.everything or not known:
            known = mine
        honest = torch.stack([self._update(*one) for one in known])
        for client, message in mine:
            knowledge = Knowledge(
                honest, len(answered), len(mine), self.aggregate, self._generator(client)
            )
            self._replace(client, message, self.attack(knowledge, self._update(client, message)))
        return replies

    def _generator(self, client: int) -> torch.Generator:
        made = torch.Generator()
        return made.manual_seed(key_of("attack", self.seed, self._round, client) % 2**63)

    def _update(self, client: int, message: Message) -> Tensor:
        tensors, sent = to_tensors(records(message.content, ArrayRecord)[0]), self._sent[client]
        return torch.cat([(t - sent[name]).reshape(-1) for name, t in tensors.items()])

    def _replace(self, client: int, message: Message, update: Tensor) -> None:
        key, record = next((k, r) for k, r in message.content.items() if isinstance(r, ArrayRecord))
        tensors, sent = to_tensors(record), self._sent[client]
        parts = update.split([tensor.numel() for tensor in tensors.values()])
        message.content[key] = to_record(
            {
                name: (sent[name] + part.view(tensor.shape)).to(tensor)
                for (name, tensor), part in zip(tensors.items(), parts, strict=True)
            }
        )
