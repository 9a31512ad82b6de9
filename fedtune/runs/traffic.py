"""Bytes of a run's messages before it is run: rounds gone through in which training changes little.

What a client is sent may depend on what it was sent before, so the first rounds are gone through
as they will be; later ones are as the last two of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flwr.app import ConfigRecord, Message

from fedtune.adapters.layout import Tensors
from fedtune.apps.rounds import Train
from fedtune.apps.store import MemoryStore
from fedtune.cohort.plan import ClientResult, planned_steps
from fedtune.grids.arrays import to_record, to_tensors
from fedtune.grids.compat import set_message_id
from fedtune.grids.sizes import Size, message_size
from fedtune.runs.build import Federation

GONE_THROUGH, ALIKE = 6, 2
ID_LENGTH = 64
CHANGE = 1e-3


@dataclass(frozen=True)
class Traffic:
    """Bytes of messages.

    Attributes:
        clients: of round 1.
        down: of round 1, and
        up: of round 1.
        run_down: payload of all rounds, and
        run_up: likewise.
        exact: whether these two are exact.
        opening_down: payload before round 1, and
        opening_up: likewise.
    """

    clients: list[int]
    down: Size
    up: Size
    run_down: int
    run_up: int
    exact: bool
    opening_down: int = 0
    opening_up: int = 0


def traffic(federation: Federation, arrays: Tensors, taking_part: Sequence[list[int]]) -> Traffic:
    """The bytes of a run.

    Args:
        arrays: the global tensors before round 1.
        taking_part: the clients of each round.
    """
    store = _Forgetful()
    sizes: list[tuple[Size, Size]] = []
    clients: list[int] = []
    with federation.serving.serving():
        for number in range(1, min(len(taking_part), GONE_THROUGH) + 1):
            arrays, down, up, asked = _round(federation, store, number, arrays)
            sizes.append((down, up))
            clients = clients or asked
            if not changes_downlink(federation):
                break
    counts = [len(one) for one in taking_part]
    gone = len(sizes)
    one = client_payload(federation, gone + 1)
    run_down, run_up = (
        sum(pair[way].payload for pair in sizes)
        + round(
            sum(counts[gone:])
            * _each(sizes[-ALIKE:], way, sum(counts[max(0, gone - ALIKE) : gone]), one)
        )
        for way in (0, 1)
    )
    exact = not changes_downlink(federation) or gone == len(counts)
    before = opening_bytes(federation)
    return Traffic(clients, *sizes[0], run_down, run_up, exact, *before)


def _each(sizes: Sequence[tuple[Size, Size]], way: int, clients: int, one: int) -> float:
    """Payload of a client in rounds like these."""
    return sum(pair[way].payload for pair in sizes) / clients if clients else one


def changes_downlink(federation: Federation) -> bool:
    """Whether what a client is sent depends on what it was sent before."""
    strategy = federation.strategy
    return bool(strategy.delivers) or strategy.keeps_sent or strategy.opening is not None


def client_payload(federation: Federation, server_round: int = 1) -> int:
    """Bytes of the tensors that one client sends in a round."""
    setting = federation.engine.setting
    return federation.strategy.uploads(setting.layout.sent, setting.master.itemsize, server_round)


def opening_bytes(federation: Federation) -> tuple[int, int]:
    """Payload of what comes before round 1, down and up."""
    opening = federation.strategy.opening
    if opening is None:
        return 0, 0
    everyone = federation.task.clients.eligible
    asked = federation.strategy.participation.draw(everyone, 0) or everyone
    ranks = [spec.shape[0] for spec in federation.adapted.layout.specs if spec.role == "A"]
    down, up = opening.numbers(max(ranks))
    size = federation.engine.setting.master.itemsize * len(asked)
    return down * size, up * size


def _round(
    federation: Federation, store: MemoryStore, number: int, arrays: Tensors
) -> tuple[Tensors, Size, Size, list[int]]:
    """A round's new tensors, the bytes of its messages and replies, and its clients."""
    down = up = Size()
    clients: list[int] = []
    replies: list[Message] = []
    strategy, grid = federation.strategy, federation.grid
    for message in strategy.configure_train(number, to_record(arrays), ConfigRecord(), grid):
        client = grid.directory.client(message.metadata.dst_node_id)
        clients.append(client)
        down += message_size(message)
        set_message_id(message, "0" * ID_LENGTH)
        replies.append(_reply(federation, store, message, client))
        up += message_size(replies[-1])
    if changes_downlink(federation):
        new, _ = strategy.aggregate_train(number, replies)
        arrays = arrays if new is None else to_tensors(new)
    return arrays, down, up, clients


def _reply(federation: Federation, store: MemoryStore, message: Message, client: int) -> Message:
    """What a client would answer, had training changed hardly anything."""
    clients = replace(federation.clients, store=store)
    examples = len(clients.training_rows(client))
    view = clients.view(client, message)
    going, result, trainings = clients.method(view), None, 0
    planned = planned_steps(examples, clients.engine.setting.local)
    while True:
        try:
            job = going.send(result)
        except StopIteration as end:
            return clients.reply(message, view, end.value, trainings * planned)
        trained = view.layout.training(job.only if isinstance(job, Train) else None).trained
        moved = {spec.name: job.state[spec.name] + CHANGE for spec in trained}
        training = isinstance(job, Train)
        trainings += training
        result = ClientResult(client, moved, 1.0, 1, examples) if training else moved


class _Forgetful(MemoryStore):
    """A store in which clients keep nothing of their own."""

    def put(self, client: int, kept: Tensors) -> None:
        """Forget it."""
