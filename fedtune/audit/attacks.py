"""Scores of canaries: from what a client uploads, and from the final model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedtune.adapters.layout import Tensors
from fedtune.cohort.engine import Engine
from fedtune.cohort.plan import ClientWork
from fedtune.errors import ClientFailure
from fedtune.tasks.base import Rows

RIDGE = 1e-6


def example_gradients(engine: Engine, state: Tensors, rows: Rows) -> Tensor:
    """The gradient of each example at a state, (n, P)."""
    works = [
        ClientWork(index, state, ((np.asarray([row]),),), (1,), None, 1)
        for index, row in enumerate(rows)
    ]
    found = engine.gradients(works, 1)
    layout = engine.setting.layout
    parts = []
    for index in range(len(works)):
        one = found[index]
        if isinstance(one, ClientFailure):
            raise one
        parts.append(layout.flatten(one))
    return torch.stack(parts)


def decoded(gradients: Tensor, change: Tensor, clip: float, noise: float) -> Tensor:
    """How much of each example's clipped gradient is in a client's change, (n,).

    The change is taken as -Σ a_i·g_i + noise; a is its least-squares estimate with a ridge, which
    keeps examples of like gradients apart as far as the noise allows.

    Args:
        gradients: (n, P), of all examples that the client may have trained on: the adversary knows
            them, and not which of the canaries were among them.
        change: (P,), what it sent less what it was sent.
        clip: C; infinite without a bound.
        noise: variance of the noise over that of a.
    """
    rows = gradients.double()
    norms = rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    rows = rows * (clip / norms).clamp(max=1.0)
    gram = rows @ rows.T
    ridge = noise + RIDGE * float(gram.diagonal().mean())
    eye = torch.eye(len(rows), dtype=torch.float64, device=gram.device)
    found: Tensor = torch.linalg.solve(gram + ridge * eye, -(rows @ change.double()))
    return found.cpu()


def standardised(scores: Tensor) -> Tensor:
    """Less their mean, over their standard deviation, so that uploads can be added up."""
    return (scores - scores.mean()) / scores.std().clamp_min(1e-30)


def by_loss(engine: Engine, state: Tensors, rows: Rows) -> NDArray[np.float64]:
    """Minus the loss of each example under the final model, (n,)."""
    data = engine.setting.data
    return np.asarray([-engine.evaluate(state, data, np.asarray([r]))["loss"] for r in rows])


def by_alignment(gradients: Tensor, change: Tensor) -> NDArray[np.float64]:
    """Cosine between each example's first gradient and what the run changed, downhill, (n,)."""
    found = torch.nn.functional.cosine_similarity(gradients.double(), -change.double(), dim=1)
    return found.cpu().numpy()


def tokens_found(upload: Tensor, candidates: Sequence[Tensor]) -> NDArray[np.float64]:
    """How near the inputs that a token would make come to the row space of a layer's ΔA.

    A's gradient is a combination of the layer's inputs, so that its rows span some of them; a token
    whose input lies in that space was in the client's text (Petrov et al., NeurIPS 2024).

    Args:
        upload: ΔA, (r, d_in).
        candidates: of each token, its inputs at every position, (positions, d_in).

    Returns:
        (tokens,), minus the least relative distance.
    """
    _, sizes, rows = torch.linalg.svd(upload.double(), full_matrices=False)
    basis = rows[sizes > 1e-9 * sizes.max()]
    scores = []
    for inputs in candidates:
        unit = torch.nn.functional.normalize(inputs.double(), dim=1)
        rest = unit - unit @ basis.T @ basis
        scores.append(-float(rest.norm(dim=1).min()))
    return np.asarray(scores)
