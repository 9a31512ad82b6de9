"""A round of a strategy with clients whose answers are a function of what they are sent."""

from __future__ import annotations

from collections.abc import Callable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedtune.grids.arrays import to_tensors
from fedtune.grids.cohort_grid import CohortGrid

Tensors = dict[str, torch.Tensor]


class Answering:
    """Clients that answer with what a function makes of their id and what they are sent."""

    def __init__(self, answer: Callable[[int, Tensors], Tensors], examples=None) -> None:
        self.answer, self.examples = answer, examples
        self.received: list[tuple[int, Message]] = []

    def handle(self, messages):
        self.received = messages
        replies = []
        for client, message in messages:
            arrays = self.answer(client, to_tensors(message.content["arrays"]))
            count = 1 if self.examples is None else self.examples[client]
            metrics = MetricRecord({"num-examples": count, "loss": 1.0})
            content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
            replies.append(Message(content, reply_to=message))
        return replies


class Federation:
    """A strategy, its clients, and the model as it goes from round to round."""

    def __init__(self, strategy, model: Tensors, answer, count: int, examples=None) -> None:
        strategy.min_available_nodes = 1
        self.strategy, self.model, self.round = strategy, model, 0
        self.clients = Answering(answer, examples)
        self.grid = CohortGrid(self.clients, range(count))

    def go(self) -> Tensors:
        """One round; gives the new model."""
        self.round += 1
        with self.grid.serving():
            arrays, strategy = ArrayRecord(self.model), self.strategy
            messages = list(strategy.configure_train(self.round, arrays, ConfigRecord(), self.grid))
            replies = list(self.grid.send_and_receive(messages))
            new, _ = strategy.aggregate_train(self.round, replies)
        if new is not None:
            self.model = to_tensors(new)
        return self.model
