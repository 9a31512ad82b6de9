"""Kind `rank`: B is chosen among fixed edges by an order of preference, not trained by value.

Every entry of B has two edges, +c and -c; an edge counts if its score is among the `keep` highest
of its matrix, so an entry is +c, -c or 0 (both or neither). What clients learn and send is the
order of the edges. Federated rank learning (Mozaffari et al., USENIX Security 2023) over
antithetic edges, so that nothing is added to the base before round 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

BYTE = 8


@dataclass(frozen=True)
class Ternary:
    """How scores make a matrix.

    Attributes:
        keep: number of edges that count, even.
        constant: c.
    """

    keep: int
    constant: float

    def matrix(self, scores: Tensor) -> Tensor:
        """B of scores: (..., d_out, r, 2) to (..., d_out, r); the gradient passes the choice."""
        chosen: Tensor = _Highest.apply(scores, self.keep)  # type: ignore[no-untyped-call]
        return self.constant * (chosen[..., 0] - chosen[..., 1])


class _Highest(torch.autograd.Function):
    """1 for the highest scores, 0 for the others; straight-through."""

    @staticmethod
    def forward(ctx: object, scores: Tensor, keep: int) -> Tensor:
        """Over the last three dimensions."""
        flat = scores.flatten(-3)
        last = flat.argsort(dim=-1, stable=True)[..., flat.shape[-1] - keep :]
        return torch.zeros_like(flat).scatter_(-1, last, 1.0).view(scores.shape)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        """As it comes."""
        return grads[0], None


class Chosen(nn.Module):
    """A parametrisation (torch.nn.utils.parametrize) of B by scores.

    Args:
        ternary: how scores make a matrix.
    """

    def __init__(self, ternary: Ternary) -> None:
        super().__init__()
        self.ternary = ternary

    def forward(self, scores: Tensor) -> Tensor:
        """B."""
        return self.ternary.matrix(scores)

    def right_inverse(self, matrix: Tensor) -> Tensor:
        """Scores of the right shape; their values are set later."""
        return matrix.new_zeros(*matrix.shape, 2)


def edges_kept(entries: int, share: float) -> int:
    """How many of 2·entries edges count: that share of them, even, neither none nor all."""
    return 2 * max(1, min(entries - 1, round(share * entries)))


def initial_scores(draws: Tensor, bound: float) -> Tensor:
    """Scores before round 1, (d_out, r, 2), in which the two edges of an entry are neighbours.

    They are spread evenly over ±bound, so that no two are equal: an order is all that is sent.

    Args:
        draws: one number an entry, (d_out, r); their order is that of the entries.
        bound: of the scores.
    """
    order = draws.flatten().argsort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    pairs = torch.stack([2 * ranks, 2 * ranks + 1], -1)
    spread = torch.linspace(-bound, bound, 2 * len(order), dtype=torch.float64).to(draws)
    return spread[pairs].view(*draws.shape, 2)


def ranking_of(scores: Tensor) -> Tensor:
    """Edges from the least to the most important, a permutation (d,) int64."""
    return scores.flatten().argsort(stable=True)


def positions_of(ranking: Tensor) -> Tensor:
    """Each edge's place in a ranking (its inverse permutation), (..., d)."""
    return ranking.argsort(dim=-1)


def scores_of(ranking: Tensor, like: Tensor) -> Tensor:
    """Scores in that order: the values of `like`, sorted, in its shape."""
    flat = torch.empty_like(like).flatten()
    flat[ranking.to(flat.device)] = like.flatten().sort().values
    return flat.view(like.shape)


def is_permutation(ranking: Tensor) -> bool:
    """Whether every number below its length occurs once."""
    return bool((torch.bincount(ranking, minlength=len(ranking)) == 1).all())


def bits_of(count: int) -> int:
    """Bits that a number below `count` needs."""
    return max(1, (count - 1).bit_length())


def pack(ranking: Tensor) -> Tensor:
    """A ranking (d,) in d·⌈log₂ d⌉ bits, uint8."""
    bits = bits_of(len(ranking))
    places = torch.arange(bits, device=ranking.device)
    ones = ((ranking[:, None] >> places) & 1).flatten()
    padded = torch.nn.functional.pad(ones, (0, -len(ones) % BYTE)).view(-1, BYTE)
    powers = 2 ** torch.arange(BYTE, device=ranking.device)
    return (padded * powers).sum(1).to(torch.uint8)


def unpack(packed: Tensor, count: int) -> Tensor:
    """The ranking (count,) int64 of its bits; numbers may exceed what a ranking holds."""
    bits = bits_of(count)
    ones = (packed.long()[:, None] >> torch.arange(BYTE, device=packed.device)) & 1
    numbers = ones.flatten()[: bits * count].view(count, bits)
    return (numbers << torch.arange(bits, device=packed.device)).sum(1)


def vote(rankings: Tensor) -> Tensor:
    """One client, one vote: edges by their sum of positions, ties by index.

    Args:
        rankings: (n, d).

    Returns:
        The ranking of all, (d,) int64.
    """
    return positions_of(rankings).sum(0).argsort(stable=True)
