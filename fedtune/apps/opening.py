"""What clients do before round 1 for LoRA-SB: the gradient of the base, whole or as projections.

Messages of type `train.opening` name the part to do. A client that is asked for a sketch sends G·Ω
first, Ω drawn from the seed, then QᵀG for the Q that came of all sketches (two passes of a
randomised range finder; Halko, Martinsson and Tropp, 2011).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedtune.adapters.layout import Tensors
from fedtune.cohort.base_gradient import base_gradients
from fedtune.cohort.engine import Engine
from fedtune.randomness import aligned, generator
from fedtune.tasks.base import Rows

OPENING = "train.opening"
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


def opening_answer(
    engine: Engine, client: int, rows: Rows, config: Mapping[str, Any], sent: Tensors
) -> tuple[Tensors, int]:
    """What a client sends of the gradient of the base, and over how many examples it is.

    Args:
        rows: what the client trains on.
        config: of the message.
        sent: with it: Q by layer, for the second pass.
    """
    seed = int(config[SEED])
    rows = some_rows(rows, int(config[EXAMPLES]), seed, client)
    gradients = engine_gradients(engine, rows)
    part = str(config[PART])
    if part == DENSE:
        return gradients, len(rows)
    if part == PROJECT:
        return {name: sent[name].to(g).T @ g for name, g in gradients.items()}, len(rows)
    width = int(config[WIDTH])
    sketches = {
        name: g @ sketching_matrix(seed, name, g.shape[1], min(width, *g.shape)).to(g)
        for name, g in gradients.items()
    }
    return sketches, len(rows)


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
