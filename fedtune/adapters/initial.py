"""What an adapter's tensors are before round 1."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedtune.adapters.factors import orthonormal
from fedtune.adapters.layout import Layout, Tensors, TensorSpec
from fedtune.adapters.ranked import initial_scores
from fedtune.randomness import key_of, uniform

SPREAD = 0.03


def initial_tensors(
    layout: Layout, seed: int, known: Mapping[str, Tensor], head_std: float
) -> Tensors:
    """The adapter before round 1, float32 on the CPU: a pure function of seed and names.

    A is Kaiming-uniform (a = √5), so U(±1/√d_in), and B is 0, as PEFT initialises them; each A has
    a stream of its own. Around an R, which is 0, A and B are orthonormal. Scores lie evenly in
    ±`SPREAD`, two neighbours an entry of B (only their ratio to the learning rate matters). Tensors
    that the checkpoint holds are kept; new matrices are uniform with standard deviation
    `head_std`, new normalisation weights are 1, new biases 0.

    Args:
        layout: the adapter's tensors.
        seed: the run's seed.
        known: tensors of saved modules that the checkpoint holds, by spec name.
        head_std: standard deviation of new head matrices.
    """
    framed = any(s.role == "R" for s in layout.specs)
    return {s.name: _initial(s, seed, known, head_std, framed) for s in layout.specs}


def _initial(
    spec: TensorSpec, seed: int, known: Mapping[str, Tensor], head_std: float, framed: bool
) -> Tensor:
    if spec.name in known:
        kept: Tensor = known[spec.name].detach().float().cpu().clone()
        return kept
    if spec.ternary is not None:
        paired = spec.ternary.form == "antithetic"
        shape = spec.shape[:-1] if paired else spec.shape
        return initial_scores(uniform(key_of("init", seed, spec.name), shape), SPREAD, spec.ternary)
    if spec.role in ("R", "W") or (spec.role == "B" and not framed):
        return torch.zeros(spec.shape)
    if len(spec.shape) < 2 and spec.name.endswith(".weight"):
        return torch.ones(spec.shape)
    if framed and spec.role in ("A", "B"):
        return orthonormal(2.0 * uniform(key_of("init", seed, spec.name), spec.shape) - 1.0)
    if len(spec.shape) < 2:
        return torch.zeros(spec.shape)
    bound: float = spec.shape[1] ** -0.5 if spec.role == "A" else head_std * 3.0**0.5
    return (2.0 * uniform(key_of("init", seed, spec.name), spec.shape) - 1.0) * bound
