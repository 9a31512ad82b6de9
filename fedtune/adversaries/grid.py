"""A grid wrapper in which malicious clients send something else than what they trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

    Args:
        inner: the grid that does the work.
        attack: makes the malicious updates.
        malicious: logical ids.
        everything: whether the attacker knows all honest updates of a round, or only what its
            own clients would have sent.
        aggregate: the deployed rule, for adaptive attacks.
        seed: of the run.
    """

    def __init__(
        self,
        inner: Grid,
        attack: Attack,
        malicious: Sequence[int],
        everything: bool,
        aggregate: Aggregate,
        seed: int,
    ) -> None:
        super().__init__(inner)
        self.attack, self.malicious = attack, frozenset(malicious)
        self.everything, self.aggregate, self.seed = everything, aggregate, seed
        self._sent: dict[str, Tensor] = {}
        self._round = 0

    def outgoing(self, messages: list[Message]) -> list[Message]:
        """See what is broadcast; what is left out of it is as it was."""
        seen: set[int] = set()
        for message in messages:
            if message.metadata.message_type == MessageType.TRAIN:
                self._round = int(str(message.content["config"]["server-round"]))
                record = records(message.content, ArrayRecord)[0]
                if id(record) not in seen:
                    seen.add(id(record))
                    self._sent.update(to_tensors(record))
        return messages

    def incoming(self, replies: list[Message]) -> list[Message]:
        """Craft the malicious replies; errors pass as they are."""
        answered = self.trained(replies)
        mine = [(client, message) for client, message in answered if client in self.malicious]
        if not mine:
            return replies
        known = [m for client, m in answered if client not in self.malicious]
        if not self.everything or not known:
            known = [message for _, message in mine]
        honest = torch.stack([self._update(message) for message in known])
        for client, message in mine:
            knowledge = Knowledge(
                honest, len(answered), len(mine), self.aggregate, self._generator(client)
            )
            self._replace(message, self.attack(knowledge, self._update(message)))
        return replies

    def _generator(self, client: int) -> torch.Generator:
        made = torch.Generator()
        return made.manual_seed(key_of("attack", self.seed, self._round, client) % 2**63)

    def _update(self, message: Message) -> Tensor:
        tensors = to_tensors(records(message.content, ArrayRecord)[0])
        return torch.cat([(t - self._sent[name]).reshape(-1) for name, t in tensors.items()])

    def _replace(self, message: Message, update: Tensor) -> None:
        key, record = next((k, r) for k, r in message.content.items() if isinstance(r, ArrayRecord))
        tensors = to_tensors(record)
        parts = update.split([tensor.numel() for tensor in tensors.values()])
        message.content[key] = to_record(
            {
                name: (self._sent[name] + part.view(tensor.shape)).to(tensor)
                for (name, tensor), part in zip(tensors.items(), parts, strict=True)
            }
        )
