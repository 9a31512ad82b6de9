"""Kind `rank`: what is trained is an order of preference over fixed edges, not values.

An edge counts if it is among the `keep` highest of its matrix. Federated rank learning (Mozaffari
et al., USENIX Security 2023) over edges of three forms:

- `antithetic`: every entry of B has two edges, +c and -c, so it is +c, -c or 0 (both or neither).
- `signed`: every entry has one, with a sign that is learned too: +c, -c or 0 by |score|, less what
  that is before round 1.
- `mask`: the edges are the base's own weights, random and frozen; nothing is adapted to.

In the first two nothing is added to the base before round 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from fedtune.randomness import key_of, uniform

BYTE = 8
Form = Literal["antithetic", "signed", "mask"]


@dataclass(frozen=True)
class Ternary:
    """How scores make a matrix.

    Attributes:
        keep: number of edges that count; even, if edges are antithetic.
        constant: c.
        form: of the edges.
        by_magnitude: whether the highest |score| count, as in the authors' program, and not the
            highest scores, as in the paper; the ranking is that of the scores in both.
        base: of form `signed`, what is subtracted; of form `mask`, the weights themselves.
    """

    keep: int
    constant: float
    form: Form = "antithetic"
    by_magnitude: bool = False
    base: Tensor | None = field(default=None, compare=False)

    def matrix(self, scores: Tensor) -> Tensor:
        """Of scores, (..., d_out, r, 2) or (..., *shape); the gradient passes the choice."""
        weighed = scores.abs() if self.by_magnitude or self.form == "signed" else scores
        chosen: Tensor = _Highest.apply(weighed, self.keep, self._own(scores))  # type: ignore[no-untyped-call]
        if self.form == "antithetic":
            return self.constant * (chosen[..., 0] - chosen[..., 1])
        if self.form == "signed":
            made = self.constant * scores.sign() * chosen
            return made if self.base is None else made - self.base.to(made)
        assert self.base is not None
        return self.base.to(chosen) * chosen

    def ranking(self, scores: Tensor) -> Tensor:
        """Edges of one client from the least to the most important, (d,) int64."""
        return ranking_of(scores.abs() if self.form == "signed" else scores)

    def _own(self, scores: Tensor) -> int:
        if self.form == "mask":
            assert self.base is not None
            return self.base.dim()
        return 3 if self.form == "antithetic" else 2


class _Highest(torch.autograd.Function):
    """1 for the highest scores, 0 for the others; straight-through."""

    @staticmethod
    def forward(ctx: object, scores: Tensor, keep: int, own: int) -> Tensor:
        """Over the last `own` dimensions."""
        flat = scores.flatten(-own)
        last = flat.argsort(dim=-1, stable=True)[..., flat.shape[-1] - keep :]
        return torch.zeros_like(flat).scatter_(-1, last, 1.0).view(scores.shape)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None, None]:
        """As it comes."""
        return grads[0], None, None


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
        pairs = (2,) if self.ternary.form == "antithetic" else ()
        return matrix.new_zeros(*matrix.shape, *pairs)


def edges_kept(entries: int, share: float, form: Form = "antithetic") -> int:
    """How many edges count: that share of them, neither none nor all; of pairs an even number."""
    kept = max(1, min(entries - 1, round(share * entries)))
    return 2 * kept if form == "antithetic" else kept


def initial_scores(draws: Tensor, bound: float, ternary: Ternary) -> Tensor:
    """Scores before round 1, spread evenly over ±bound: an order is all that is sent.

    The two edges of an antithetic entry are neighbours in what decides, so that both count or
    neither. A signed entry's sign is drawn with it.

    Args:
        draws: one number an entry, of the matrix's shape; their order is that of the entries.
        bound: of the scores.
    """
    order = draws.flatten().argsort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    count = len(order)
    if ternary.form == "antithetic" and ternary.by_magnitude:
        sizes = torch.linspace(bound / count, bound, count, dtype=torch.float64).to(draws)
        return torch.stack([sizes[ranks], -sizes[ranks]], -1).view(*draws.shape, 2)
    if ternary.form == "antithetic":
        pairs = torch.stack([2 * ranks, 2 * ranks + 1], -1)
        spread = torch.linspace(-bound, bound, 2 * count, dtype=torch.float64).to(draws)
        return spread[pairs].view(*draws.shape, 2)
    if ternary.form == "signed":
        sizes = torch.linspace(bound / count, bound, count, dtype=torch.float64).to(draws)
        signs = torch.where(draws.flatten() * 2**12 % 1.0 < 0.5, -1.0, 1.0).to(draws)
        return (signs * sizes[ranks]).view(draws.shape)
    spread = torch.linspace(-bound, bound, count, dtype=torch.float64).to(draws)
    return spread[ranks].view(draws.shape)


def signed_constants(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Edges of form `mask`: ±√(2/fan_in), Kaiming's standard deviation, signs drawn by name."""
    fan_in = torch.Size(shape[1:]).numel()
    signs = torch.where(uniform(key_of("edges", seed, name), shape) < 0.5, -1.0, 1.0)
    return signs * float((2.0 / fan_in) ** 0.5)


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


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Numbers (n,) below 2^bits in n·bits bits, uint8."""
    places = torch.arange(bits, device=numbers.device)
    ones = ((numbers[:, None] >> places) & 1).flatten()
    padded = torch.nn.functional.pad(ones, (0, -len(ones) % BYTE)).view(-1, BYTE)
    powers = 2 ** torch.arange(BYTE, device=numbers.device)
    return (padded * powers).sum(1).to(torch.uint8)


def unpack(packed: Tensor, count: int, bits: int) -> Tensor:
    """The numbers (count,) int64 of their bits; they may exceed what was packed."""
    ones = (packed.long()[:, None] >> torch.arange(BYTE, device=packed.device)) & 1
    numbers = ones.flatten()[: bits * count].view(count, bits)
    return (numbers << torch.arange(bits, device=packed.device)).sum(1)


def vote(rankings: Tensor, edges: int | None = None) -> Tensor:
    """One client, one vote: edges by their sum of positions, ties by index.

    Args:
        rankings: (n, m), of each client the m most important edges, the most important last; the
            others count as position 0.
        edges: how many there are; by default m.

    Returns:
        The ranking of all, (d,) int64.
    """
    d = edges or rankings.shape[1]
    return sums_of(rankings, d).argsort(stable=True)


def sums_of(rankings: Tensor, edges: int) -> Tensor:
    """Each edge's sum of positions over the clients, (d,) int64."""
    n, m = rankings.shape
    positions = torch.arange(edges - m, edges, device=rankings.device).expand(n, m)
    sums = torch.zeros(edges, dtype=torch.int64, device=rankings.device)
    return sums.scatter_add_(0, rankings.reshape(-1), positions.reshape(-1))
