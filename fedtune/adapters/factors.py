"""Mathematics on low-rank factors: refactorisation, frames of LoRA-SB, residuals of FedEx-LoRA.

Matrices are d_out x d_in; B is (d_out, r), A is (r, d_in). All is computed in float64 and given
in the dtype of what came.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NOTHING = 1e-12


def orthonormal(draws: Tensor) -> Tensor:
    """The nearest thing to draws, (m, n), whose shorter side is orthonormal."""
    tall = draws.double() if draws.shape[0] >= draws.shape[1] else draws.double().T
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()
    found: Tensor = (q if draws.shape[0] >= draws.shape[1] else q.T).to(draws.dtype)
    return found.contiguous()


def refactored(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """B' and A' with B'·A' = B·A and A'·A'ᵀ = I: B' = U·S, A' = Vᵀ of the product's SVD.

    Two thin QR decompositions and an SVD of r x r, never one of d_out x d_in. Where the product is
    nothing its singular vectors are arbitrary, and both come back as they are (FedSVD; Lee et al.,
    NeurIPS 2025).
    """
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T)
    if float(s[0]) <= NOTHING * float(a.double().norm()):
        return b, a
    return ((q_b @ u) * s).to(b.dtype), (v @ q_a.T).to(a.dtype)


def frame_of(step: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """B, R and A of the best approximation of a step by that rank: B·R·A, R = diag(S_r).

    LoRA-SB's initialisation (Ponkshe et al., 2024, eq. 8-9).
    """
    u, s, v = torch.linalg.svd(step.double(), full_matrices=False)
    parts = (u[:, :rank], torch.diag(s[:rank]), v[:rank])
    b, r, a = (part.to(step.dtype).contiguous() for part in parts)
    return b, r, a


def first_step(gradient: Tensor, size: float) -> Tensor:
    """The first step of AdamW against a gradient: -size · sign."""
    return -size * gradient.sign()


def range_of(sketch: Tensor) -> Tensor:
    """An orthonormal basis, (d_out, q), of the range of a sketch G·Ω (Halko et al., 2011)."""
    basis: Tensor = torch.linalg.qr(sketch.double()).Q
    return basis.to(sketch.dtype).contiguous()


def frame_of_sketch(
    basis: Tensor, projected: Tensor, rank: int, size: float
) -> tuple[Tensor, Tensor, Tensor]:
    """B, R and A of the gradient G ≈ Q·QᵀG, with the length that `first_step` would have.

    The sign of a gradient cannot be had from its sketch, so the step goes along the gradient
    itself: B·R·A is its best approximation by that rank, scaled to the Frobenius norm of
    size · sign(G).

    Args:
        basis: Q, (d_out, q).
        projected: QᵀG, (q, d_in).
    """
    b, r, a = frame_of(-projected, rank)
    length = size * float(basis.shape[0] * projected.shape[1]) ** 0.5
    norm = projected.double().norm().clamp_min(torch.finfo(torch.float64).tiny)
    return (basis @ b).contiguous(), (r.double() * (length / norm)).to(r.dtype), a


def residual_of(
    bs: Sequence[Tensor], as_: Sequence[Tensor], weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Factors U, V of Σ p_k B_k·A_k - B̄·Ā = U·V, (d_out, (K-1)r) and ((K-1)r, d_in).

    The covariance form Σ p_k (B_k - B̄)(A_k - Ā); since Σ p_k (B_k - B̄) = 0, the last client's part
    goes into the others': U = [p_k (B_k - B̄)], V = [A_k - A_K], k < K.

    Args:
        bs: B_k of K clients, and
        as_: A_k.
        weights: p_k, summing to 1, float64.
    """
    b = torch.stack([one.double() for one in bs])
    a = torch.stack([one.double() for one in as_])
    p = weights.to(b.device)
    centred = p[:, None, None] * (b - (p[:, None, None] * b).sum(0))
    u = centred[:-1].transpose(0, 1).reshape(b.shape[1], -1)
    v = (a[:-1] - a[-1]).reshape(-1, a.shape[2])
    return u.to(bs[0].dtype), v.to(as_[0].dtype)


def aggregation_error(
    bs: Sequence[Sequence[Tensor]], as_: Sequence[Sequence[Tensor]], weights: Tensor
) -> float:
    """‖Σ p_k B_k·A_k - B̄·Ā‖ / ‖Σ p_k B_k·A_k‖, Frobenius over all layers; nothing of d_out x d_in.

    Args:
        bs: B_k of K clients, of each layer, and
        as_: A_k.
        weights: p_k, summing to 1, float64.
    """
    missed = whole = 0.0
    for b, a in zip(bs, as_, strict=True):
        missed += _square(*(part.double() for part in residual_of(b, a, weights)))
        shares = [p * one.double() for p, one in zip(weights.to(b[0].device), b, strict=True)]
        whole += _square(torch.cat(shares, 1), torch.cat([one.double() for one in a]))
    return (missed / whole) ** 0.5 if whole > 0 else 0.0


def _square(u: Tensor, v: Tensor) -> float:
    """‖U·V‖²."""
    return max(0.0, float(((u.T @ u) * (v @ v.T)).sum()))


def truncated(u: Tensor, v: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best factors of U·V of a rank, √S on both sides, and the relative error of leaving
    the rest out."""
    q_u, r_u = torch.linalg.qr(u.double())
    q_v, r_v = torch.linalg.qr(v.double().T)
    left, s, right = torch.linalg.svd(r_u @ r_v.T, full_matrices=False)
    total = float(s.norm())
    error = float(s[rank:].norm()) / total if total > 0 else 0.0
    root = s[:rank].sqrt()
    short_u, short_v = (q_u @ left[:, :rank]) * root, root[:, None] * (right[:rank] @ q_v.T)
    return short_u.to(u.dtype), short_v.to(v.dtype), error


def exact_factors(change: Tensor) -> tuple[Tensor, Tensor]:
    """U and V, float64, with U·V = change to rounding, of its numerical rank; √S on both sides."""
    u, s, v = torch.linalg.svd(change.double(), full_matrices=False)
    small = torch.finfo(change.dtype).eps * max(change.shape) * float(s[0])
    rank = int((s > small).sum())
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
