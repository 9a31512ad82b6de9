"""What a client does in a round, as a coroutine: it yields jobs and is sent their results.

The jobs that a round's clients yield are done together, in cohorts; so a method is written for one
client and trained for many. A strategy names its coroutine as `client_round`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedtune.adapters.layout import Layout, Tensors
from fedtune.adapters.packed import Packed
from fedtune.cohort.plan import ClientResult
from fedtune.cohort.pull import Pull
from fedtune.scenario.local import LocalSection

MOMENTUM = "momentum/"
STEPS = "fedtune-steps"  # metric of a reply, where they are not those that were planned


@dataclass(frozen=True)
class Train:
    """Local training by the scenario's `[local]`; its result is a `ClientResult`.

    Attributes:
        state: all trained tensors, and those that the server delivers, as they are before.
        pull: what the method adds to the objective.
        again: the how many-th of this round it is, from 0; each has batches of its own.
        only: names of the tensors that are trained; None: all that can be.
    """

    state: Tensors
    pull: Pull | None = None
    again: int = 0
    only: frozenset[str] | None = None


@dataclass(frozen=True)
class Gradient:
    """The gradient of the mean loss over all that the client trains on; its result is `Tensors`.

    Attributes:
        state: where it is taken.
    """

    state: Tensors


@dataclass
class ClientView:
    """What a client knows in a round.

    Attributes:
        client: its logical id.
        server_round: number of the round.
        state: the adapter's tensors that it was sent, and those it kept of its own head.
        extra: what else it was sent.
        kept: what else it keeps over rounds; what it puts here it finds again.
        config: of the message.
        layout: the adapter's tensors.
        initial: what they were before round 1.
        local: the scenario's `[local]`.
    """

    client: int
    server_round: int
    state: Tensors
    extra: Tensors
    kept: Tensors
    config: Mapping[str, Any]
    layout: Layout
    initial: Tensors
    local: LocalSection

    def start(self) -> Tensors:
        """What it trains, as it was before round 1."""
        return {s.name: self.initial[s.name].to(self.state[s.name]) for s in self.layout.trained}

    def shared(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Of tensors, those that it sends."""
        names = [s.name for s in self.layout.sent if s.name in tensors]
        if isinstance(tensors, Packed) and names == list(tensors):
            return tensors
        return {name: tensors[name] for name in names}

    def recall(self, what: str) -> Tensors | None:
        """What it kept under that name, or None; of the tensors that it trains."""
        names = [spec.name for spec in self.layout.trained]
        if what + names[0] not in self.kept:
            return None
        return {name: self.kept[what + name].to(self.state[name]) for name in names}

    def keep(self, what: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors that it trains under a name."""
        self.kept.update({what + spec.name: tensors[spec.name] for spec in self.layout.trained})


@dataclass(frozen=True)
class Done:
    """What a client has at the end of its round.

    Attributes:
        result: of its training; its tensors are its own.
        sent: what it sends, by name.
    """

    result: ClientResult
    sent: Mapping[str, Tensor]


ClientRound = Generator[Train | Gradient, Any, Done]
RoundFunction = Callable[[ClientView], ClientRound]


def plain_round(view: ClientView) -> ClientRound:
    """Train once from what was sent, and send what came of it."""
    result: ClientResult = yield Train(view.state)
    return Done(result, view.shared(result.tensors))


def with_momentum(view: ClientView, sent: Mapping[str, Tensor], beta: float) -> Tensors:
    """m ← β·m + (1 - β)·update, kept from round to round, sent instead of the update.

    Client momentum as Byzantine-robust protocols have it (Karimireddy et al., 2021; ByzFL); m
    begins at 0.
    """
    moved = dict(sent)
    for name, tensor in sent.items():
        start = view.state[name] if name in view.state else view.extra[name]
        before = view.kept.get(MOMENTUM + name)
        fresh = (1.0 - beta) * (tensor - start)
        momentum = fresh if before is None else beta * before.to(fresh) + fresh
        view.kept[MOMENTUM + name] = momentum
        moved[name] = start + momentum
    return moved
