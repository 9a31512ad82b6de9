"""fedtune's clients: a message becomes work for the engine, its result a reply.

A round's messages are handled together, so the engine can train them in cohorts; a deployed client
handles one message at a time with the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from fedtune.adapters.layout import Tensors
from fedtune.apps.budget import Budget
from fedtune.apps.going import Going
from fedtune.apps.opening import OPENING, opening_gradients, private_opening, shared_part
from fedtune.apps.received import ARRAYS, CONFIG, Received
from fedtune.apps.rounds import (
    STEPS,
    ClientView,
    Done,
    Gradient,
    RoundFunction,
    Train,
    plain_round,
    with_momentum,
)
from fedtune.apps.store import ClientStore
from fedtune.cohort.engine import Engine
from fedtune.cohort.plan import ClientWork, full_work, plan_work, planned_steps
from fedtune.errors import ClientFailure, Declined, RunError
from fedtune.grids.arrays import to_record, to_tensors
from fedtune.grids.replies import DECLINED
from fedtune.rules.flat import are_finite
from fedtune.tasks.base import Rows
from fedtune.tasks.clients import ClientRows, hold_out

METRICS = "metrics"
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
        method: what a client does in a round.
        budget: of private clients.
        most_batches: of a client in a round; None: any number.
    """

    engine: Engine
    rows: ClientRows
    store: ClientStore
    seed: int
    holdout: float = 0.0
    method: RoundFunction = plain_round
    budget: Budget | None = None
    most_batches: int | None = None

    def handle(self, messages: Sequence[tuple[int, Message]]) -> list[Answer]:
        """Answer messages to logical clients, in their order."""
        answers: dict[int, Answer] = {}
        states = Received(self.engine.setting, self.store)
        rounds: list[Going] = []
        for index, (client, message) in enumerate(messages):
            try:
                if message.metadata.message_type == OPENING:
                    answers[index] = self._open(client, message)
                    continue
                view = states.view(client, message)
                if message.metadata.message_type == MessageType.TRAIN:
                    rounds.append(Going(index, message, view, self.method(view)))
                else:
                    answers[index] = self._evaluate(client, message, view.state)
            except Declined as declined:
                answers[index] = Message(Error(DECLINED, declined.reason), reply_to=message)
            except Exception as error:
                kind = message.metadata.message_type.partition(".")[0]
                stage = "data" if kind == MessageType.TRAIN else "evaluate"
                answers[index] = self._told(ClientFailure(client, stage, error))
        self._go_through(rounds)
        answers.update({one.index: self._answer(one) for one in rounds})
        return [answers[index] for index in range(len(messages))]

    def view(self, client: int, message: Message) -> ClientView:
        """What a client knows when it gets a message."""
        return Received(self.engine.setting, self.store).view(client, message)

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
        return [self._work(client, server_round, Train(state)) for client in clients]

    def _work(self, client: int, server_round: int, job: Train | Gradient) -> ClientWork:
        local, rows = self.engine.setting.local, self.training_rows(client)
        if isinstance(job, Gradient):
            if self.budget is not None:
                raise PermissionError("a private client gives no gradient without noise")
            return full_work(client, rows, job.state, local.batch_size)
        widths = self.engine.setting.data.widths(rows)
        place = (server_round, client, job.again)
        noise = self.budget.noise(client, len(rows), place) if self.budget else None
        return plan_work(
            client, server_round, rows, job.state, local, self.seed, widths,
            job.pull, job.again, job.only, noise,
        )  # fmt: skip

    def _go_through(self, rounds: list[Going]) -> None:
        """Advance all rounds to their ends; what they yield at one time is done together."""
        for one in rounds:
            one.advance(None)
        while going := [one for one in rounds if one.job is not None]:
            kind, number = type(going[0].job), going[0].view.server_round
            some = [
                one for one in going if type(one.job) is kind and one.view.server_round == number
            ]
            declined = self._reserved(some)
            planned = [declined.get(one.view.client) or self._planned(one) for one in some]
            results = self._do(planned, kind, number)
            for one, result in zip(some, results, strict=True):
                one.advance(result)

    def _planned(self, one: Going) -> ClientWork | ClientFailure:
        assert one.job is not None
        client, server_round = one.view.client, one.view.server_round
        try:
            work = self._work(client, server_round, one.job)
            one.batches += len(work.steps) * self.engine.setting.local.accumulation
            if self.most_batches is not None and one.batches > self.most_batches:
                return Declined(client, f"more than {self.most_batches} batches in a round")
            return work
        except Exception as error:
            return ClientFailure(client, "data", error)

    def _reserved(self, some: list[Going]) -> dict[int, Declined]:
        """Charge private clients for what they are about to train, on disk before anything is."""
        if self.budget is None:
            return {}
        asked = [
            (v.client, len(self.training_rows(v.client)), v.server_round)
            for v in (one.view for one in some)
        ]
        return self.budget.reserve(asked)

    def _told(self, failure: ClientFailure) -> ClientFailure:
        """What is told of a failure; of a private client no text, which may quote data."""
        if self.budget is None:
            return failure
        told = ClientFailure(failure.client, failure.stage, "failed on private data")
        told.__cause__ = failure.__cause__  # stays with the client
        return told

    def _do(
        self, planned: list[ClientWork | ClientFailure], kind: type, server_round: int
    ) -> list[Any]:
        works = [work for work in planned if isinstance(work, ClientWork)]
        work_on = self.engine.train if kind is Train else self.engine.gradients
        try:
            done: dict[int, Any] = dict(work_on(works, server_round))
        except Exception as error:
            if self.budget is None or isinstance(error, RunError):
                raise
            raise self._told(ClientFailure(works[0].client, "train", error)) from error
        return [done[one.client] if isinstance(one, ClientWork) else one for one in planned]

    def _answer(self, one: Going) -> Answer:
        if isinstance(one.failure, Declined):
            return Message(Error(DECLINED, one.failure.reason), reply_to=one.message)
        if one.failure is not None:
            return self._told(one.failure)
        assert one.done is not None
        return self.reply(one.message, one.view, one.done, one.steps)

    def reply(self, message: Message, view: ClientView, done: Done, steps: int) -> Message:
        """A client's answer to a training message; what it keeps goes to the store.

        Args:
            steps: that its optimiser did in the round.
        """
        beta, sent = self.engine.setting.local.client_momentum, done.sent
        if beta:
            sent = with_momentum(view, sent, beta)
        heads = {s.name: done.result.tensors[s.name] for s in view.layout.kept}
        kept = {name: tensor.clone() for name, tensor in {**view.kept, **heads}.items()}
        if kept and are_finite(kept.values()):
            self.store.put(view.client, kept)
        result = done.result
        metrics = MetricRecord({"num-examples": result.examples, "loss": result.loss})
        if steps != planned_steps(result.examples, self.engine.setting.local):
            metrics[STEPS] = steps
        if self.budget is not None:
            counts = self.budget.section.public_counts
            metrics = MetricRecord({"num-examples": result.examples if counts else 1})
        content = RecordDict({ARRAYS: to_record(sent), METRICS: metrics})
        return Message(content, reply_to=message)

    def _open(self, client: int, message: Message) -> Message:
        record, config = message.content[ARRAYS], message.content[CONFIG]
        assert isinstance(record, ArrayRecord)
        assert isinstance(config, ConfigRecord)
        rows = self.training_rows(client)
        if self.budget is None:
            gradients, count = opening_gradients(self.engine, client, rows, config)
        else:
            kept = dict(self.store.get(client) or {})
            gradients = private_opening(self.engine, self.budget, client, rows, config, kept)
            self.store.put(client, kept)
            count = 1
        found = shared_part(gradients, config, to_tensors(record))
        content = RecordDict(
            {ARRAYS: to_record(found), METRICS: MetricRecord({"num-examples": count})}
        )
        return Message(content, reply_to=message)

    def _evaluate(self, client: int, message: Message, state: Tensors) -> Message:
        if self.budget is not None:
            raise PermissionError("a private client tells no metric without noise")
        rows = self.held_rows(client)
        found = self.engine.evaluate(state, self.engine.setting.data, rows) if len(rows) else {}
        metrics = MetricRecord({"num-examples": len(rows), **found})
        return Message(RecordDict({METRICS: metrics}), reply_to=message)
