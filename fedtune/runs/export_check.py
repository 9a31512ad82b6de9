"""An export holds what the run made: loaded in plain PEFT or Transformers, outputs compared."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedtune.adapters.layout import load_tensors
from fedtune.adapters.wrap import wrap
from fedtune.cohort.base_shift import BaseShift
from fedtune.cohort.stacked import adapted_layers
from fedtune.errors import ScenarioError
from fedtune.randomness import generator
from fedtune.runs.checkpoints import load_checkpoint
from fedtune.runs.directory import RunDirectory
from fedtune.runs.strategies import adapter_kind, delivered_roles
from fedtune.tasks.base import Inputs
from fedtune.tasks.bases import MODELS, base_path, labels_of, load_base, quiet
from fedtune.tasks.images import load_processor
from fedtune.tasks.lengths import positions, vocabulary

TOLERANCE = 1e-4
ROWS, LENGTH, SIDE, MIN_WORDS = 3, 12, 64, 100


def check_export(directory: RunDirectory, folders: Sequence[Path]) -> None:
    """Hold exported folders against the run's own model, on a few rows that are made up.

    Args:
        directory: of a run whose result is an adapter.
        folders: `adapter` and `merged`, as they were written.

    Raises:
        ScenarioError: naming the folder whose outputs differ by more than `TOLERANCE`, relative.
    """
    own = run_model(directory)
    if own is None:
        warnings.warn(f"{directory.path}: no checkpoint to compare the export with", stacklevel=3)
        return
    hold_against(directory, folders, own)


def hold_against(directory: RunDirectory, folders: Sequence[Path], own: nn.Module) -> None:
    """The same against any model that the folders should hold; see `check_export`."""
    rows = made_up_rows(directory, own)
    expected = outputs(own, rows)
    if not bool(expected.isfinite().all()):
        warnings.warn(f"{directory.path}: the run's outputs are not finite", stacklevel=3)
        return
    for folder in folders:
        gap = outputs(plain_model(directory, folder), rows) - expected
        if not float(gap.norm()) <= TOLERANCE * float(expected.norm()):
            raise ScenarioError(
                f"export of {str(directory.path)!r}: the model in {str(folder)!r} gives other "
                f"outputs than the run's (by {float(gap.norm() / expected.norm()):.1e}, relative); "
                "it is not to be used"
            )


def run_model(directory: RunDirectory) -> nn.Module | None:
    """The model of the run's last checkpoint, float32 on the CPU; None where there is none."""
    checkpoint = load_checkpoint(directory.checkpoints)
    if checkpoint is None:
        return None
    scenario = directory.scenario
    base = load_base(scenario.task, directory.summary["classes"])
    adapted = wrap(
        base,
        scenario.adapter,
        adapter_kind(scenario),
        scenario.task.head,
        scenario.run.seed,
        torch.device("cpu"),
        torch.float32,
        delivered_roles(scenario),
    )
    tensors = {**adapted.initial, **checkpoint.groups["server"]}
    load_tensors(adapted.model, adapted.layout.specs, tensors)
    BaseShift(adapted.model, adapted.layout).put(tensors)
    model: nn.Module = adapted.model.eval()
    return model


def plain_model(directory: RunDirectory, folder: Path) -> nn.Module:
    """An exported folder as anybody loads it, in float32."""
    task, classes = directory.scenario.task, directory.summary["classes"]
    auto, _ = MODELS[task.kind]
    given: dict[str, Any] = {"dtype": torch.float32}
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not (folder / "adapter_config.json").is_file():
            whole: nn.Module = auto.from_pretrained(folder, **given).eval()
            return whole
        base = auto.from_pretrained(
            base_path(task.base),
            ignore_mismatched_sizes=True,
            **given,
            **labels_of(task, classes),
        )
        model: nn.Module = PeftModel.from_pretrained(base, str(folder)).eval()
        return model


def made_up_rows(directory: RunDirectory, model: nn.Module) -> list[Inputs]:
    """Inputs of one row each: noise as images, drawn tokens as text."""
    draw, task = generator("export"), directory.scenario.task
    if task.kind == "image-classification":
        shape = (SIDE, SIDE, int(getattr(model.config, "num_channels", 3)))
        read = load_processor(base_path(task.base))
        made = [draw.integers(0, 256, shape).astype(np.uint8) for _ in range(ROWS)]
        pictures = (read([m], return_tensors="pt", input_data_format="channels_last") for m in made)
        return [{"pixel_values": picture["pixel_values"].float()} for picture in pictures]
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    words = vocabulary(base) or MIN_WORDS
    most = min(LENGTH, positions(base) or LENGTH)
    ids = [torch.from_numpy(draw.integers(0, words, (1, max(1, most - n)))) for n in range(ROWS)]
    for row in ids:
        row[:, -1] = _last(base.config, int(row[0, -1]), words)
    return [{"input_ids": row} for row in ids]


def _last(config: Any, drawn: int, words: int) -> int:
    """The last token of a row: a closing one where rows are read at it (BART), never padding."""
    if getattr(config, "is_encoder_decoder", False):
        return int(config.eos_token_id)
    return (drawn + 1) % words if drawn == getattr(config, "pad_token_id", None) else drawn


@torch.no_grad()
def outputs(model: nn.Module, rows: Sequence[Inputs]) -> Tensor:
    """The logits of all rows, one after another, as one float64 vector."""
    return torch.cat([model(**row).logits.double().flatten() for row in rows])


def with_products(model: PeftModel, products: Mapping[str, Tensor]) -> PeftModel:
    """The model with given changes in the weights of its adapted layers, in place of B·A.

    Args:
        products: (d_out, d_in) by the layer's name.
    """
    for name, (layer, _) in adapted_layers(model).items():
        change = products[name].T if isinstance(layer, Conv1D) else products[name]
        layer.weight = nn.Parameter(layer.weight.detach() + change, requires_grad=False)
        model.get_parameter(f"{name}.lora_B.default.weight").data.zero_()
    return model
