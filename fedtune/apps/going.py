"""A client's round on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import Message

from fedtune.adapters.layout import Tensors
from fedtune.apps.rounds import ClientRound, ClientView, Done, Gradient, Train
from fedtune.cohort.plan import ClientResult
from fedtune.errors import ClientFailure


@dataclass
class Going:
    """One client's round.

    Attributes:
        index: of its message among those that came together.
        message: the one it answers.
        view: what the client knows.
        going: its coroutine.
        job: what waits to be done, None at the end.
        batches: that it was planned to work on so far.
        steps: of its optimiser, done so far.
        done: what came of it, and
        failure: what went wrong.
    """

    index: int
    message: Message
    view: ClientView
    going: ClientRound
    job: Train | Gradient | None = None
    batches: int = 0
    steps: int = 0
    done: Done | None = None
    failure: ClientFailure | None = None

    def advance(self, result: ClientResult | Tensors | ClientFailure | None) -> None:
        """Go on to the next job with the result of the last."""
        self.job = None
        if isinstance(result, ClientFailure):
            self.failure = result
            return
        if isinstance(result, ClientResult):
            self.steps += result.steps
        try:
            self.job = self.going.send(result)
        except StopIteration as end:
            self.done = end.value
        except Exception as error:
            self.failure = ClientFailure(self.view.client, "train", error)
