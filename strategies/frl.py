"""Federated rank learning: clients vote on the order of fixed edges (Mozaffari et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from flwr.app import ArrayRecord
from pydantic import Field
from torch import Tensor

from fedtune.adapters.ballots import Ballot
from fedtune.adapters.layout import Layout, TensorSpec
from fedtune.apps.rounds import ClientRound, ClientView, Done, RoundFunction, Train
from fedtune.cohort.plan import ClientResult
from fedtune.grids.arrays import to_record, to_tensors
from strategies.base import AdapterStrategy

Part = Annotated[float, Field(gt=0, le=1)]


def frl_round(view: ClientView) -> ClientRound:
    """Put the initial scores in the order that was sent, train them, send the order of the top."""
    upload = float(view.config["upload"])
    whole = {s.name: ballot_of(s) for s in view.layout.trained if s.ternary is not None}
    part = {s.name: ballot_of(s, upload) for s in view.layout.trained if s.ternary is not None}
    start = {
        name: ballot.rebuilt(view.state[name].to(torch.uint8), view.initial[name])
        for name, ballot in whole.items()
    }
    result: ClientResult = yield Train({**view.state, **start})
    sent = {s.name: result.tensors[s.name] for s in view.layout.sent}
    return Done(result, {n: part[n].cast(t) if n in part else t for n, t in sent.items()})


def ballot_of(spec: TensorSpec, upload: float = 1.0) -> Ballot:
    """The form of the ballots on a matrix, of which that share is listed."""
    assert spec.ternary is not None
    return Ballot(spec.ternary, spec.size, max(1, round(upload * spec.size)))


class FRL(AdapterStrategy):
    """Federated rank learning over the fixed edges of kind `rank`.

    The server keeps scores, of which only the order (and, of signed edges, the signs) goes to the
    clients and comes back; the new order is that of the sums of positions, one client one vote. The
    rule, if any, is for what else is trained (a shared head). A reply that is no permutation is set
    aside. It needs fedtune's clients.

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

    def __init__(self, *, upload: Part = 1.0, **common: Any) -> None:
        super().__init__(**common)
        self.upload = upload
        self._whole: dict[str, Ballot] = {}

    def meet(self, layout: Layout) -> None:
        """Learn which tensors are scores."""
        ranked = [spec for spec in layout.sent if spec.ternary is not None]
        self._whole = {spec.name: ballot_of(spec) for spec in ranked}
        self.ballots = {spec.name: ballot_of(spec, self.upload) for spec in ranked}

    def client_config(self) -> dict[str, bool | float | str]:
        """How much clients send."""
        return {"upload": self.upload}

    def broadcast(self, arrays: ArrayRecord) -> ArrayRecord:
        """Whole ballots instead of scores."""
        tensors = to_tensors(arrays)
        cast = {name: ballot.cast(tensors[name]) for name, ballot in self._whole.items()}
        return to_record({**tensors, **cast})

    def averages(self, name: str) -> bool:
        """What is not voted on."""
        return name not in self._whole

    def expected(self, sent: dict[str, Tensor]) -> dict[str, Tensor]:
        """Ballots of the size that clients send."""
        parts = {n: torch.zeros(b.size, dtype=torch.uint8) for n, b in self.ballots.items()}
        return {**sent, **parts}

    def fault(self, tensors: dict[str, Tensor]) -> str | None:
        """Whether a ballot of a reply is none."""
        faults = ((name, ballot.fault(tensors[name])) for name, ballot in self.ballots.items())
        return next((f"{name} {fault}" for name, fault in faults if fault), None)

    def combine(self, replies: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The vote, as scores."""
        return {
            name: ballot.elected([reply[name] for reply in replies], self._model[name])
            for name, ballot in self.ballots.items()
        }

    def uploads(self, specs: Sequence[TensorSpec], itemsize: int, server_round: int) -> int:
        """Of rankings, what is listed."""
        others = [spec for spec in specs if spec.name not in self.ballots]
        ballots = sum(ballot.size for ballot in self.ballots.values())
        return super().uploads(others, itemsize, server_round) + ballots
