"""What clients do before round 1 for LoRA-SB: the gradient of the base, whole or as projections.

Messages of type `train.opening` name the part to do. A client that is asked for a sketch sends G·Ω
first, Ω drawn from the seed, then QᵀG for the Q that came of all sketches (two passes of a
randomised range finder; Halko, Martinsson and Tropp, 2011).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedtune.adapters.layout import Tensors
from fedtune.apps.budget import Budget
from fedtune.cohort.base_gradient import base_gradients, base_shapes
from fedtune.cohort.engine import Engine
from fedtune.privacy.example import ExampleNoise, clip_factors
from fedtune.randomness import aligned, generator
from fedtune.tasks.base import Rows

OPENING = "train.opening"
KEPT_GRADIENT = "opening/"
PART, EXAMPLES, WIDTH, SEED = "part", "examples", "width", "seed"
DENSE, SKETCH, PROJECT = "dense", "sketch", "project"
SPARE = 8
REVEALED = {
    "client-sketch": "of each participant's mean gradient by the adapted weights, two products "
    "with matrices of rank + 8 columns",
    "client-dense": "each participant's mean gradient by the adapted weights, whole",
    "public": "nothing of the clients",
    "pooled": "in a simulation only: all clients' examples, to one place",
    "random": "nothing",
}


def opening_gradients(
    engine: Engine, client: int, rows: Rows, config: Mapping[str, Any]
) -> tuple[Tensors, int]:
    """The gradient of the base over some of a client's rows, and over how many.

    Args:
        rows: what the client trains on.
        config: of the message.
    """
    rows = some_rows(rows, int(config[EXAMPLES]), int(config[SEED]), client)
    return engine_gradients(engine, rows), len(rows)


def private_gradients(engine: Engine, rows: Rows, noise: ExampleNoise) -> Tensors:
    """An estimate of the same with noise: Σ of clipped examples' gradients over their number.

    Args:
        rows: what the client trains on; a Poisson sample of them is used.
        noise: clips the gradients of all layers together.
    """
    setting = engine.setting
    total = {
        name: torch.zeros(shape, dtype=setting.master, device=setting.device)
        for name, shape in base_shapes(setting.adapted.model).items()
    }
    (chosen,) = noise.batches(len(rows), 1)
    for row in rows[chosen]:
        own = engine_gradients(engine, np.asarray([row]))
        norm = torch.stack([g.norm() for g in own.values()]).norm()
        factor = clip_factors(norm, noise.clip)
        for name, gradient in own.items():
            if factor > 0:
                total[name] += factor * gradient
    stream = noise.stream()
    return {
        name: (one + noise.drawn(stream, one.numel(), one).view_as(one)) / noise.divisor
        for name, one in total.items()
    }


def private_opening(
    engine: Engine,
    budget: Budget,
    client: int,
    rows: Rows,
    config: Mapping[str, Any],
    kept: Tensors,
) -> Tensors:
    """A noisy gradient, charged once.

    Args:
        kept: what the client keeps; the gradient is put there where a projection of it follows.

    Raises:
        Declined: if it would exceed what the client may spend.
    """
    named = [name for name in kept if name.startswith(KEPT_GRADIENT)]
    made = {name.removeprefix(KEPT_GRADIENT): kept.pop(name) for name in named}
    if not made:
        noise = budget.opening_noise(client, len(rows))
        made = private_gradients(engine, rows, noise)
    if str(config[PART]) == SKETCH:
        kept.update({KEPT_GRADIENT + name: one for name, one in made.items()})
    return made


def shared_part(gradients: Tensors, config: Mapping[str, Any], sent: Tensors) -> Tensors:
    """What a client sends of a gradient: all of it, a sketch, or a projection.

    Args:
        sent: with the message: Q by layer, for the second pass.
    """
    part = str(config[PART])
    if part == DENSE:
        return gradients
    if part == PROJECT:
        return {name: sent[name].to(g).T @ g for name, g in gradients.items()}
    width, seed = int(config[WIDTH]), int(config[SEED])
    return {
        name: g @ sketching_matrix(seed, name, g.shape[1], min(width, *g.shape)).to(g)
        for name, g in gradients.items()
    }


def engine_gradients(engine: Engine, rows: Rows) -> Tensors:
    """The gradient of the base over rows, by layer."""
    setting = engine.setting
    initial = {
        spec.name: setting.adapted.initial[spec.name].to(setting.device, setting.master)
        for spec in setting.layout.specs
    }
    return base_gradients(engine.backend, setting, initial, rows)


def some_rows(rows: Rows, count: int, seed: int, client: int) -> Rows:
    """At most so many of a client's rows, drawn once."""
    return rows[generator("opening", seed, client).permutation(len(rows))[:count]]


def sketching_matrix(seed: int, name: str, d_in: int, width: int) -> Tensor:
    """Ω of a layer, (d_in, width), normal; the same wherever it is drawn."""
    return aligned(generator("sketch", seed, name).normal(size=(d_in, width)))
