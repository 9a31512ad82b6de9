"""A grid wrapper with unreliable clients and links; strategies never know of it.

Every draw is a function of (seed, round, client), so a run with faults repeats and resumes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedtune.grids.arrays import records, to_record, to_tensors
from fedtune.grids.compat import CLIENT_RAISED, set_message_id
from fedtune.grids.wrapper import GridWrapper
from fedtune.randomness import generator
from fedtune.scenario.trouble import FaultsSection

EARLIER = "e" * 64
CORRUPT = "corrupt in transit: the checksum does not match"


class FaultGrid(GridWrapper):
    """Loses, delays, repeats, damages and disturbs training messages.

    Args:
        inner: the grid that does the work.
        faults: the scenario's `[faults]`.
        seed: of the run.
        lost: ids by round of the clients whose replies never arrive.
    """

    def __init__(
        self,
        inner: Grid,
        faults: FaultsSection,
        seed: int,
        lost: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(inner)
        self.faults, self.seed, self.lost = faults, seed, lost or {}
        self._round, self._training = 0, False
        self._asked: dict[int, Message] = {}
        self._late: list[Message] = []
        self._restored: dict[str, Tensor] = {}

    def outgoing(self, messages: list[Message]) -> list[Message]:
        """Noise on the way to each client."""
        self._training = False
        for message in messages:
            if message.metadata.message_type == MessageType.TRAIN:
                self._training = True
                self._round = int(str(message.content["config"]["server-round"]))
                client = self.directory.client(message.metadata.dst_node_id)
                self._asked[client] = message
                self._disturb(message, client, "down", self.faults.noise_down, self.faults.snr_down)
        return messages

    def incoming(self, replies: list[Message]) -> list[Message]:
        """What arrives, and what was held up in the round before."""
        if not self._training:
            return replies
        arrived, held, self._late = [], [*self._late, *self._taken_up()], []
        for message in replies:
            if message.metadata.message_type != MessageType.TRAIN or message.has_error():
                arrived.append(message)
                continue
            client = self.directory.client(message.metadata.src_node_id)
            self._disturb(message, client, "up", self.faults.noise_up, self.faults.snr_up)
            if self._never_arrives(client):
                continue
            if self._happens("late", client, self.faults.late):
                self._late.append(message)
                continue
            arrived.append(self._transit(message, client))
            if self._happens("duplicate", client, self.faults.duplicate):
                arrived.append(message)
        return [*arrived, *held]

    def state_dict(self) -> dict[str, Tensor]:
        """The replies that are on their way to the next round, as `client/record/name`."""
        found: dict[str, Tensor] = {}
        for message in self._late:
            client = self.directory.client(message.metadata.src_node_id)
            arrays = to_tensors(records(message.content, ArrayRecord)[0])
            found.update({f"{client}/arrays/{name}": tensor for name, tensor in arrays.items()})
            metrics = records(message.content, MetricRecord)[0]
            for name, value in metrics.items():
                found[f"{client}/metrics/{name}"] = torch.from_numpy(np.asarray(value))
        return found

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self._restored = state

    def _taken_up(self) -> list[Message]:
        """The late replies of a run that was stopped; they answer nothing of this round."""
        clients = sorted({int(key.split("/", 1)[0]) for key in self._restored})
        found = []
        for client in clients:
            parts = {
                record: {
                    key.split("/", 2)[2]: tensor
                    for key, tensor in self._restored.items()
                    if key.startswith(f"{client}/{record}/")
                }
                for record in ("arrays", "metrics")
            }
            metrics = MetricRecord({name: t.tolist() for name, t in parts["metrics"].items()})
            content = RecordDict({"arrays": to_record(parts["arrays"]), "metrics": metrics})
            asked = Message(RecordDict(), self.directory.node(client), MessageType.TRAIN)
            set_message_id(asked, EARLIER)
            found.append(Message(content, reply_to=asked))
        self._restored = {}
        return found

    def _never_arrives(self, client: int) -> bool:
        return (
            client in self.lost.get(self._round, ())
            or self._happens("dropout", client, self.faults.dropout)
            or self._too_slow(client)
        )

    def _happens(self, what: str, client: int, chance: float) -> bool:
        if not chance:
            return False
        return float(generator(what, self.seed, self._round, client).random()) < chance

    def _too_slow(self, client: int) -> bool:
        """Whether a client's time, 1 for the median one, exceeds the deadline.

        Log-normal over clients, and half as wide over a client's rounds.
        """
        if self.faults.deadline is None:
            return False
        own = generator("speed", self.seed, client).normal()
        now = generator("speed", self.seed, self._round, client).normal()
        return float(np.exp(self.faults.spread * (own + 0.5 * now))) > self.faults.deadline

    def _disturb(
        self, message: Message, client: int, way: str, sigma: float, snr: float | None
    ) -> None:
        if not sigma and snr is None:
            return
        draw = generator(f"noise-{way}", self.seed, self._round, client)
        for key, record in list(message.content.items()):
            if isinstance(record, ArrayRecord):
                noisy = {n: _noisy(t, sigma, snr, draw) for n, t in to_tensors(record).items()}
                message.content[key] = to_record(noisy)

    def _transit(self, message: Message, client: int) -> Message:
        """The message, or an error where its checksum does not survive the way."""
        if not self._happens("corrupt", client, self.faults.corrupt):
            return message
        record = records(message.content, ArrayRecord)[0]
        draw = generator("damage", self.seed, self._round, client)
        if checksum(damaged(record, draw)) == checksum(record):
            return message
        return Message(Error(CLIENT_RAISED, CORRUPT), reply_to=self._asked[client])


def checksum(record: Mapping[str, Array]) -> int:
    """CRC-32 of the bytes of all arrays, in the order of their names."""
    total = 0
    for name in sorted(record):
        total = zlib.crc32(record[name].data, zlib.crc32(name.encode(), total))
    return total


def damaged(record: ArrayRecord, draw: np.random.Generator) -> dict[str, Array]:
    """A record of which one array has a bit flipped or its end cut off."""
    arrays = {name: Array(a.dtype, a.shape, a.stype, a.data) for name, a in record.items()}
    name = sorted(arrays)[int(draw.integers(len(arrays)))]
    data = bytearray(arrays[name].data)
    if draw.random() < 0.5:
        data[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))
    else:
        del data[int(draw.integers(len(data))) :]
    arrays[name].data = bytes(data)
    return arrays


def _noisy(tensor: Tensor, sigma: float, snr: float | None, draw: np.random.Generator) -> Tensor:
    """Gaussian noise of a standard deviation, or of a ratio in dB; never on integers."""
    if not tensor.is_floating_point():
        return tensor
    if snr is not None:
        sigma = float(tensor.double().square().mean().sqrt()) * 10.0 ** (-snr / 20.0)
    noise = torch.from_numpy(draw.standard_normal(tuple(tensor.shape)))
    return tensor + (sigma * noise).to(tensor)
