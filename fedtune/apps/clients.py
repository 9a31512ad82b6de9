"""fedtune's clients: a message becomes work for the engine, its result a reply.

A round's messages are handled together, so the engine can train them in cohorts; a deployed client
handles one message at a time with the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from fedtune.adapters.layout import Tensors
from fedtune.apps.store import ClientStore
from fedtune.cohort.engine import Engine
from fedtune.cohort.plan import ClientResult, ClientWork, plan_work
from fedtune.errors import ClientFailure
from fedtune.grids.arrays import to_record, to_tensor
from fedtune.tasks.base import Rows
from fedtune.tasks.clients import ClientRows, hold_out

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
Answer = Message | ClientFailure


@dataclass
class CohortClients:
    """The client side of the grid for fedtune's own clients.

    Attributes:
        engine: trains and evaluates.
        rows: which rows each client holds.
        store: what clients keep between messages.
        seed: of the run.
        holdout: share of its rows that a client is evaluated on and does not train on.
    """

    engine: Engine
    rows: ClientRows
    store: ClientStore
    seed: int
    holdout: float = 0.0

    def handle(self, messages: Sequence[tuple[int, Message]]) -> list[Answer]:
        """Answer messages to logical clients, in their order."""
        answers: dict[int, Answer] = {}
        states = _States(self)
        training: list[tuple[int, ClientWork, Message]] = []
        for index, (client, message) in enumerate(messages):
            try:
                state = states.of(client, message)
                if message.metadata.message_type == MessageType.TRAIN:
                    training.append(
                        (index, self._work(client, message_round(message), state), message)
                    )
                else:
                    answers[index] = self._evaluate(client, message, state)
            except Exception as error:
                stage = "evaluate" if message.metadata.message_type != "train" else "data"
                answers[index] = ClientFailure(client, stage, error)
        answers.update(self._train(training))
        return [answers[index] for index in range(len(messages))]

    def training_rows(self, client: int) -> Rows:
        """The rows a client trains on."""
        return self._split(client)[0]

    def held_rows(self, client: int) -> Rows:
        """The rows that a client is evaluated on."""
        return self._split(client)[1]

    def _split(self, client: int) -> tuple[Rows, Rows]:
        rows = self.rows.rows(client)
        return hold_out(rows, self.holdout, self.seed, client) if self.holdout else (rows, rows[:0])

    def works(self, clients: Sequence[int], server_round: int, state: Tensors) -> list[ClientWork]:
        """What clients would do in a round, from one state."""
        return [self._work(client, server_round, state) for client in clients]

    def _work(self, client: int, server_round: int, state: Tensors) -> ClientWork:
        local, rows = self.engine.setting.local, self.training_rows(client)
        widths = self.engine.setting.data.widths(rows)
        return plan_work(client, server_round, rows, state, local, self.seed, widths)

    def _train(self, training: list[tuple[int, ClientWork, Message]]) -> dict[int, Answer]:
        by_round: dict[int, list[tuple[int, ClientWork, Message]]] = {}
        for item in training:
            by_round.setdefault(message_round(item[2]), []).append(item)
        answers: dict[int, Answer] = {}
        for server_round, items in by_round.items():
            done = self.engine.train([work for _, work, _ in items], server_round)
            for index, work, message in items:
                result = done[work.client]
                answers[index] = (
                    result if isinstance(result, ClientFailure) else self.reply(message, result)
                )
        return answers

    def reply(self, message: Message, result: ClientResult) -> Message:
        """A client's answer to a training message; what it keeps goes to the store."""
        layout = self.engine.setting.layout
        kept = {s.name: result.tensors[s.name].clone() for s in layout.kept}
        if kept and all(bool(tensor.isfinite().all()) for tensor in kept.values()):
            self.store.put(result.client, kept)
        arrays = to_record({s.name: result.tensors[s.name] for s in layout.sent})
        metrics = MetricRecord({"num-examples": result.examples, "loss": result.loss})
        return Message(RecordDict({ARRAYS: arrays, METRICS: metrics}), reply_to=message)

    def _evaluate(self, client: int, message: Message, state: Tensors) -> Message:
        rows = self.held_rows(client)
        found = self.engine.evaluate(state, self.engine.setting.data, rows) if len(rows) else {}
        metrics = MetricRecord({"num-examples": len(rows), **found})
        return Message(RecordDict({METRICS: metrics}), reply_to=message)


def message_round(message: Message) -> int:
    """The round that a message belongs to."""
    return int(str(message.content[CONFIG]["server-round"]))


class _States:
    """Trained tensors that clients start from; messages that share a record share them too."""

    def __init__(self, clients: CohortClients) -> None:
        self.clients = clients
        self.setting = clients.engine.setting
        self._shared: dict[int, Tensors] = {}

    def of(self, client: int, message: Message) -> Tensors:
        """What a client starts from: the tensors it is sent, and those it kept."""
        record = message.content[ARRAYS]
        if not isinstance(record, ArrayRecord):
            raise TypeError(f"message holds no ArrayRecord called {ARRAYS!r}")
        if id(record) not in self._shared:
            self._shared[id(record)] = self._received(record)
        shared = self._shared[id(record)]
        kept = self.setting.layout.kept
        if not kept:
            return shared
        own = self.clients.store.get(client)
        initial = self.setting.adapted.initial
        return {**shared, **{s.name: self._place((own or initial)[s.name]) for s in kept}}

    def _received(self, record: ArrayRecord) -> Tensors:
        tensors = {}
        for spec in self.setting.layout.sent:
            if spec.name not in record:
                raise KeyError(f"message misses {spec.name}")
            tensors[spec.name] = self._place(to_tensor(record[spec.name]))
        return tensors

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.setting.device, self.setting.master)
