"""Federated rank learning: clients vote on the order of fixed edges (Mozaffari et al., 2023)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedtune.adapters.ranked import (
    is_permutation,
    pack,
    ranking_of,
    scores_of,
    unpack,
    vote,
)
from fedtune.apps.rounds import ClientRound, ClientView, Done, RoundFunction, Train
from fedtune.cohort.plan import ClientResult
from fedtune.grids.arrays import to_record, to_tensors
from strategies.base import AdapterStrategy

FACTOR = ".lora_B."


def frl_round(view: ClientView) -> ClientRound:
    """Put the initial scores in the order that was sent, train them, send their order."""
    ranked = {spec.name for spec in view.layout.trained if spec.ternary is not None}
    state = dict(view.state)
    for name in ranked:
        like = view.initial[name]
        ranking = unpack(view.state[name].to(torch.uint8), like.numel())
        state[name] = scores_of(ranking, like.to(view.state[name].device))
    result: ClientResult = yield Train(state)
    sent = {s.name: result.tensors[s.name] for s in view.layout.sent}
    return Done(result, {n: pack(ranking_of(t)) if n in ranked else t for n, t in sent.items()})


class FRL(AdapterStrategy):
    """Federated rank learning over the fixed edges of kind `rank`.

    The server keeps the initial scores, sorted, and one ranking a matrix. Clients train scores in
    that order (only the order survives a round) and send the order of theirs; the new ranking is
    that of the sums of positions, one client one vote. The rule, if any, is for what else is
    trained (a shared head). A reply that is no permutation is set aside.
    """

    name: ClassVar[str] = "frl"
    adapter: ClassVar[str] = "rank"
    accepts: ClassVar[frozenset[str]] = frozenset({"rank"})
    client_round: ClassVar[RoundFunction] = staticmethod(frl_round)
    auto_weights: ClassVar[str] = "uniform"

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self._scores: dict[str, Tensor] = {}

    def broadcast(self, arrays: ArrayRecord) -> ArrayRecord:
        """Rankings, packed, instead of scores."""
        tensors = to_tensors(arrays)
        self._scores = {n: t for n, t in tensors.items() if FACTOR in n and t.dim() == 3}
        packed = {n: pack(ranking_of(t)) for n, t in self._scores.items()}
        return to_record({**tensors, **packed})

    def averages(self, name: str) -> bool:
        """What is not voted on."""
        return name not in self._scores

    def expects(self, name: str) -> bool:
        """Everything."""
        return True

    def fault(self, tensors: dict[str, Tensor]) -> str | None:
        """Whether a ranking of a reply is none."""
        for name, scores in self._scores.items():
            ranking = unpack(tensors[name], scores.numel())
            if int(ranking.max()) >= len(ranking) or not is_permutation(ranking):
                return f"{name} holds no permutation of {len(ranking)} edges"
        return None

    def combine(self, replies: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The vote, as scores."""
        return {
            name: scores_of(
                vote(torch.stack([unpack(reply[name], scores.numel()) for reply in replies])),
                scores,
            )
            for name, scores in self._scores.items()
        }
