"""Norms, Gram matrices and distances of rows, however long some of them are.

All are summed in float64 over blocks of columns, so no float64 copy of the rows is held, and all
are of the rows themselves: what one row holds, an attacker's of 1e38, reaches no number that is
of other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

BLOCK_BYTES = {"cpu": 2 << 20}  # fits a cache
OTHER_BLOCK_BYTES = 64 << 20
SHORTEST = 1e-150  # below it squares leave float64's normal numbers
NEAR, FAR, DROWNED = 1e4, 1e6, 1e-6  # in squared distances
MAX_PASSES = 8  # each brings the centre 10^7 times nearer, and 3e38 is the longest

Blocks = Callable[[], Iterator[Tensor]]


def column_blocks(matrix: Tensor) -> Iterator[Tensor]:
    """Views of consecutive columns of (n, d), each so small that work on it stays in cache."""
    yield from matrix.split(_width(matrix), dim=1)


def by_columns(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of columns, (n, w) to (w,), over all of (n, d): the intermediates stay small.

    Results go to one tensor at once: kept apart, they would split the memory that blocks reuse.
    """
    found = matrix.new_empty(matrix.shape[1])
    return fill(found, map(function, column_blocks(matrix)))


def fill(found: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """A tensor with its last dimension filled by one part after another, in its own dtype."""
    start = 0
    for part in parts:
        width = part.shape[-1]
        found[..., start : start + width].copy_(part)
        start += width
    return found


def combination(coefficients: Tensor, matrix: Tensor) -> Tensor:
    """Coefficients, (n,) or (k, n) float64, times the rows of (n, d), in the rows' dtype.

    Summed in that dtype where it holds every coefficient at its full precision, else in float64:
    a row of 1e38 that is cut to a length of 1 has the coefficient 1e-38.
    """
    sizes, range_ = coefficients.abs(), torch.finfo(matrix.dtype)
    if bool(((sizes == 0) | ((sizes >= range_.tiny) & (sizes <= range_.max))).all()):
        return coefficients.to(matrix) @ matrix
    found = matrix.new_empty((*coefficients.shape[:-1], matrix.shape[1]))
    wide = coefficients.to(matrix.device)
    return fill(found, (wide @ block.double() for block in column_blocks(matrix)))


def norms_of(blocks: Blocks) -> Tensor:
    """The rows' lengths, (n,) float64 on the CPU; those below 1e-150 count as 0.

    Args:
        blocks: gives float64 blocks of consecutive columns, (n, w), from the first on.
    """
    norms = sum(block.square().sum(1) for block in blocks())
    assert isinstance(norms, Tensor)
    norms = norms.sqrt().cpu()
    return torch.where(norms >= SHORTEST, norms, 0.0)


def gram_of(blocks: Blocks) -> Tensor:
    """X · Xᵀ, (n, n) float64 on the CPU, each entry exact to the lengths of its own two rows.

    Args:
        blocks: as for `norms_of`.
    """
    return _gram(blocks, lambda block: block)


def centred_gram_of(blocks: Blocks) -> Tensor:
    """X · Xᵀ of the rows less a point near most of them, (n, n) float64 on the CPU.

    What all rows have in common cancels before it is squared. The point is the rows' mean, and
    where a few rows have taken that away from all others, one of those: it is taken again until
    its distance to the row with the nearest majority is of that majority's size.

    Args:
        blocks: as for `norms_of`.
    """
    found = _gram(blocks, lambda block: block - block.mean(0))
    for _ in range(MAX_PASSES):
        majority = distances_of(found).sort(1).values[:, len(found) // 2]
        best = int(majority.argmin())
        if float(found[best, best]) <= NEAR * float(majority[best]):
            break
        found = gram_about(blocks, best)
    return found


def gram_about(blocks: Blocks, row: int) -> Tensor:
    """X · Xᵀ of the rows less one of them; arguments and result as for `gram_of`."""
    return _gram(blocks, lambda block: block - block[row])


def distances_of(gram: Tensor) -> Tensor:
    """Squared Euclidean distances between rows, of their Gram matrix."""
    norms = gram.diagonal()
    found = (norms[:, None] + norms[None, :] - 2.0 * gram).clamp_min(0.0)
    return found.fill_diagonal_(0.0)


def distances_between(blocks: Blocks, centred: Tensor) -> Tensor:
    """Squared Euclidean distances between rows, of their centred Gram matrix.

    Rows far from all others and near each other, whose difference drowns in it, are subtracted.

    Args:
        blocks: as for `norms_of`.
        centred: what `centred_gram_of` gives.
    """
    found, norms = distances_of(centred), centred.diagonal()
    sums = norms[:, None] + norms[None, :]
    drowned = (found <= DROWNED * sums) & (sums > FAR * norms.median())
    drowned.fill_diagonal_(False)
    if not bool(drowned.any()):
        return found
    found[drowned] = 0.0
    partners = {row: mask.nonzero().ravel() for row, mask in enumerate(drowned) if bool(mask.any())}
    for block in blocks():
        for row, others in partners.items():
            apart = block[others.to(block.device)] - block[row]
            found[row, others] += apart.square().sum(1).cpu()
    return found


def _gram(blocks: Blocks, moved: Callable[[Tensor], Tensor]) -> Tensor:
    found = None
    for block in blocks():
        part = moved(block)
        if found is None:
            found = part.new_zeros(len(part), len(part))
        found.addmm_(part, part.T)
    assert found is not None
    return ((found + found.T) / 2).cpu()


def _width(matrix: Tensor) -> int:
    return max(1, BLOCK_BYTES.get(matrix.device.type, OTHER_BLOCK_BYTES) // (8 * len(matrix)))
