"""What a client sends of a ranking: its most important edges in bits, and their signs, if any.

A ballot of m out of d edges takes m·⌈log₂ d⌉ bits, and one more for each of them that counts if
edges are signed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedtune.adapters.ranked import (
    BYTE,
    Ternary,
    bits_of,
    is_permutation,
    pack,
    scores_of,
    unpack,
    vote,
)


@dataclass(frozen=True)
class Ballot:
    """The form of the ballots on one matrix.

    Attributes:
        ternary: how scores make the matrix.
        edges: d.
        listed: m.
    """

    ternary: Ternary
    edges: int
    listed: int

    @classmethod
    def on(cls, ternary: Ternary, edges: int, share: float = 1.0) -> Ballot:
        """Ballots that list that share of the edges, one at least."""
        return cls(ternary, edges, max(1, round(share * edges)))

    @property
    def signs(self) -> int:
        """How many signs follow the edges."""
        return min(self.ternary.keep, self.listed) if self.ternary.form == "signed" else 0

    @property
    def size(self) -> int:
        """Bytes."""
        return -(-self.listed * bits_of(self.edges) // BYTE) - (-self.signs // BYTE)

    def recast(self, ballot: Tensor, ranking: Tensor) -> Tensor:
        """A ballot with another ranking, (d,); edges keep their signs, + where they had none."""
        before, signs = self.read(ballot)
        up = torch.ones(self.edges, dtype=torch.bool, device=ballot.device)
        up[before[self.listed - self.signs :]] = signs > 0
        return self._packed(ranking, up)

    def cast(self, scores: Tensor) -> Tensor:
        """The ballot of a client's scores, uint8."""
        return self._packed(self.ternary.ranking(scores), scores.flatten() > 0)

    def _packed(self, ranking: Tensor, up: Tensor) -> Tensor:
        """The top of a ranking (d,), and which of its edges are positive, of all (d,)."""
        listed = ranking[self.edges - self.listed :]
        packed = pack(listed, bits_of(self.edges))
        if not self.signs:
            return packed
        return torch.cat([packed, pack(up[listed[self.listed - self.signs :]].long(), 1)])

    def read(self, ballot: Tensor) -> tuple[Tensor, Tensor]:
        """The edges that are listed, (m,), and the signs of the last of them, ±1."""
        cut = self.size + (-self.signs // BYTE)
        listed = unpack(ballot[:cut], self.listed, bits_of(self.edges))
        return listed, 2 * unpack(ballot[cut:], self.signs, 1) - 1

    def fault(self, ballot: Tensor) -> str | None:
        """What is wrong with a ballot of the right size."""
        listed, _ = self.read(ballot)
        if int(listed.max()) >= self.edges:
            return f"names an edge beyond {self.edges}"
        if self.listed == self.edges:
            return None if is_permutation(listed) else f"holds no permutation of {self.edges} edges"
        return None if len(listed.unique()) == self.listed else "names an edge twice"

    def rebuilt(self, ballot: Tensor, like: Tensor) -> Tensor:
        """Scores of which this is the ballot, whole, with the sizes that `like` has."""
        ranking, signs = self.read(ballot.to(torch.uint8))
        return self._scores(ranking, signs, like.to(ballot.device))

    def elected(self, ballots: list[Tensor], like: Tensor, initial: Tensor) -> Tensor:
        """Scores that the sums of positions make; a sign is that of most who chose the edge.

        Args:
            ballots: one a client.
            like: the scores that were voted on; their signs stand where votes are even.
            initial: those before round 1; their signs are those of edges that do not count, which
                clients are not told.
        """
        read = [self.read(ballot) for ballot in ballots]
        ranking = vote(torch.stack([listed for listed, _ in read]), self.edges)
        if not self.signs:
            return scores_of(ranking, like)
        most = torch.zeros(self.edges, dtype=torch.int64, device=ranking.device)
        for listed, signs in read:
            most[listed[self.listed - self.signs :]] += signs
        before = like.flatten().sign().long().to(most)
        settled = torch.where(most == 0, before, most.sign())
        return self._scores(
            ranking, settled[ranking[self.edges - self.ternary.keep :]], initial.to(like)
        )

    def _scores(self, ranking: Tensor, signs: Tensor, like: Tensor) -> Tensor:
        if self.ternary.form != "signed":
            return scores_of(ranking, like)
        sizes = scores_of(ranking, like.abs()).flatten()
        own = like.flatten().sign()
        own[ranking[self.edges - len(signs) :].to(own.device)] = signs.to(own)
        return (own * sizes).view(like.shape)


def completed(listed: Tensor, edges: int) -> Tensor:
    """A ranking of all edges: those that are not listed before the others, by index."""
    absent = torch.ones(edges, dtype=torch.bool, device=listed.device)
    absent[listed] = False
    return torch.cat([absent.nonzero()[:, 0], listed])
