"""Federated rank learning: clients vote on the order of fixed edges (Mozaffari et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from fedtune.adapters.ballots import Ballot
from fedtune.adapters.layout import Layout, Tensors, TensorSpec
from fedtune.apps.rounds import ClientRound, ClientView, Done, RoundFunction, Train
from fedtune.cohort.plan import ClientResult
from fedtune.server.base import AdapterStrategy

Part = Annotated[float, Field(gt=0, le=1)]


def frl_round(view: ClientView) -> ClientRound:
    """Put the initial scores in the order that was sent, train them, send the order of the top."""
    ranked = {s.name: (s.ternary, s.size) for s in view.layout.trained if s.ternary is not None}
    start = {
        name: Ballot.on(*edges).rebuilt(view.state[name], view.initial[name])
        for name, edges in ranked.items()
    }
    result: ClientResult = yield Train({**view.state, **start})
    sent = view.shared(result.tensors)
    upload = float(view.config["upload"])
    cast = {name: Ballot.on(*edges, upload).cast(sent[name]) for name, edges in ranked.items()}
    return Done(result, {**sent, **cast})


class FRL(AdapterStrategy):
    """Federated rank learning over the fixed edges of kind `rank`.

    The server keeps scores, of which only the order (and, of signed edges, the signs) goes to the
    clients and comes back; the new order is that of the sums of positions, one client one vote. The
    rule, if any, is for what else is trained (a shared head). It needs fedtune's clients.

    Args:
        upload: share of each ranking that clients send, from the top; other edges count as
            position 0 (SparseFRL). What the server sends is whole.
        common: as for `AdapterStrategy`.
    """

    name: ClassVar[str] = "frl"
    adapter: ClassVar[str] = "rank"
    accepts: ClassVar[frozenset[str]] = frozenset({"rank"})
    client_round: ClassVar[RoundFunction] = staticmethod(frl_round)
    auto_weights: ClassVar[str] = "uniform"
    tells: ClassVar[tuple[str, ...]] = ("upload",)

    def __init__(self, *, upload: Part = 1.0, **common: Any) -> None:
        super().__init__(**common)
        self.upload = upload
        self._whole: dict[str, Ballot] = {}
        self._initial: Tensors = {}

    def meet(self, layout: Layout, initial: Tensors) -> None:
        """Learn which tensors are scores."""
        self._initial = initial
        ranked = {s.name: (s.ternary, s.size) for s in layout.sent if s.ternary is not None}
        self._whole = {name: Ballot.on(*edges) for name, edges in ranked.items()}
        self.ballots = {name: Ballot.on(*edges, self.upload) for name, edges in ranked.items()}

    def broadcast(self, model: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole ballots instead of scores."""
        cast = {name: ballot.cast(model[name]) for name, ballot in self._whole.items()}
        return {**model, **cast}

    def averages(self, name: str) -> bool:
        """What is not voted on."""
        return name not in self._whole

    def expected(self, sent: dict[str, Tensor]) -> dict[str, Tensor]:
        """Ballots of the size that clients send."""
        parts = {n: sent[n].new_zeros(b.size) for n, b in self.ballots.items()}
        return {**sent, **parts}

    def fault(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Whether a ballot of a reply is none."""
        faults = {name: ballot.fault(tensors[name]) for name, ballot in self.ballots.items()}
        return next((f"{name} {fault}" for name, fault in faults.items() if fault), None)

    def combine(self, replies: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The vote, as scores."""
        return {
            n: b.elected([reply[n] for reply in replies], self._model[n], self._initial[n])
            for n, b in self.ballots.items()
        }

    def uploads(self, specs: Sequence[TensorSpec], itemsize: int, server_round: int) -> int:
        """Of rankings, what is listed."""
        others = [spec for spec in specs if spec.name not in self.ballots]
        ballots = sum(ballot.size for ballot in self.ballots.values())
        return super().uploads(others, itemsize, server_round) + ballots
