"""Attacks on votes: from honest rankings to malicious ones, matrix by matrix.

The malicious clients of a round vote among themselves (or with what they know of honest ones), and
all send what that makes them send.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from fedtune.adapters.ballots import Ballot, completed
from fedtune.adapters.ranked import positions_of, vote
from fedtune.grids.arrays import records, to_record, to_tensors
from fedtune.grids.wrapper import GridWrapper

TRIES = 12


class RankAttack(Protocol):
    """Makes a malicious ranking."""

    def __call__(self, known: Tensor, keep: int, malicious: int) -> Tensor:
        """What malicious clients send for a matrix, (d,), from rankings that they know, (h, d)."""
        ...


@dataclass(frozen=True)
class ReverseRanks:
    """The vote of the rankings that are known, reversed (Mozaffari et al., 2023)."""

    def __call__(self, known: Tensor, keep: int, malicious: int) -> Tensor:
        """The most important edge first."""
        return vote(known).flip(0)


@dataclass(frozen=True)
class Vulnerable:
    """The edges nearest to being chosen or not, moved as far as a vote can move them.

    After the vulnerable edge manipulation of arXiv 2503.08976, whose text was not at hand: the
    `width` edges below and above the border of the known vote change sides, the others keep their
    order. Of several widths, the one that changes most choices when it is counted.
    """

    def __call__(self, known: Tensor, keep: int, malicious: int) -> Tensor:
        """Those below the border last, those above it first."""
        order, sums = vote(known), positions_of(known).sum(0)
        border = len(order) - keep
        before = set(order[border:].tolist())
        most = max(1, min(keep, border))
        widths = torch.linspace(0, 1, TRIES + 1)[1:].mul(most).ceil().long().unique().tolist()

        def changed(width: int) -> int:
            sent = positions_of(_exchanged(order, border, width))
            after = (sums + malicious * sent).argsort(stable=True)[border:].tolist()
            return len(before - set(after))

        return _exchanged(order, border, max(widths, key=changed))


def _exchanged(order: Tensor, border: int, width: int) -> Tensor:
    below, above = order[border - width : border], order[border : border + width]
    return torch.cat([above, order[: border - width], order[border + width :], below])


RANK_ATTACKS: dict[str, Callable[..., RankAttack]] = {
    "reverse-ranks": ReverseRanks,
    "vem": Vulnerable,
}


class RankAttackGrid(GridWrapper):
    """Replaces the rankings of malicious clients; what else they send stays as it is.

    Args:
        inner: the grid that does the work.
        attack: makes the malicious rankings.
        malicious: logical ids.
        everything: whether the attacker knows the rankings of all, or only of its own clients.
        ballots: on what clients vote, by the names of the tensors.
    """

    def __init__(
        self,
        inner: Grid,
        attack: RankAttack,
        malicious: Sequence[int],
        everything: bool,
        ballots: Mapping[str, Ballot],
    ) -> None:
        super().__init__(inner)
        self.attack, self.malicious = attack, frozenset(malicious)
        self.everything = everything
        self.ballots = ballots

    def incoming(self, replies: list[Message]) -> list[Message]:
        """Craft the malicious replies; errors pass as they are."""
        answered = self.trained(replies)
        mine = [message for client, message in answered if client in self.malicious]
        if not mine:
            return replies
        honest = [message for client, message in answered if client not in self.malicious]
        known = [_tensors(m) for m in (honest if self.everything and honest else mine)]
        crafted = {
            name: self._crafted([tensors[name] for tensors in known], ballot, len(mine))
            for name, ballot in self.ballots.items()
        }
        for message in mine:
            key = next(k for k, r in message.content.items() if isinstance(r, ArrayRecord))
            own = _tensors(message)
            sent = {n: b.recast(own[n], crafted[n]) for n, b in self.ballots.items()}
            message.content[key] = to_record({**own, **sent})
        return replies

    def _crafted(self, known: Sequence[Tensor], ballot: Ballot, mine: int) -> Tensor:
        whole = [completed(ballot.read(one)[0], ballot.edges) for one in known]
        return self.attack(torch.stack(whole), ballot.ternary.keep, mine)


def _tensors(message: Message) -> dict[str, Tensor]:
    return to_tensors(records(message.content, ArrayRecord)[0])
