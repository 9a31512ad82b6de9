"""A fresh adapter changes nothing: what a run begins as is held against the base."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from fedtune.adapters.wrap import Adapted
from fedtune.cohort.backend import Setting
from fedtune.errors import ScenarioError, first_line
from fedtune.tasks.base import Rows

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def check_start(setting: Setting, rows: Rows) -> None:
    """Refuse a model that does not begin as its base.

    With a fresh adapter every tensor of a module that is trained whole equals the base's, unless
    the checkpoint did not hold it, and the outputs equal those of the base with the same new
    tensors. A kind of adapter that begins elsewhere says so (`Kind.starts_elsewhere`).

    Args:
        setting: with the model as it was wrapped.
        rows: a few rows of the data to compare outputs on.

    Raises:
        ScenarioError: naming the tensor, or how far the outputs are from the base's.
    """
    adapted = setting.adapted
    if adapted.starts_elsewhere:
        return
    assert isinstance(adapted.model, PeftModel)
    for name, own, base in _saved(adapted.model):
        if name in adapted.fresh:
            base.data.copy_(own.data)
        elif not torch.equal(own.to(base.dtype), base):
            raise ScenarioError(
                f"adapter.modules_to_save: {name} would begin as something else than the base's; "
                "leave its module out"
            )
    owner = type(adapted.model.get_base_model()).__name__
    try:
        gap = _gap(setting, adapted, rows) if len(rows) else 0.0
    except Exception as error:  # whatever a base raises
        raise ScenarioError(
            f"task.base: the first rows do not go through {owner}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from None
    if gap > TOLERANCE[setting.dtype]:
        raise ScenarioError(
            f"task.base: {owner} with a fresh adapter is not itself: its outputs differ by "
            f"{gap:.1e} (relative); choose other adapter.targets or adapter.modules_to_save"
        )


def _saved(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each tensor of a module that is saved whole, by its wire name, with the base's own."""
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            base = dict(module.original_module.named_parameters(remove_duplicate=False))
            own = module.modules_to_save["default"].named_parameters(remove_duplicate=False)
            yield from ((f"{name}.{leaf}", tensor, base[leaf]) for leaf, tensor in own)


@torch.no_grad()
def _gap(setting: Setting, adapted: Adapted, rows: Rows) -> float:
    """How far the outputs are from the base's, relative."""
    inputs = setting.data.gather(torch.from_numpy(rows).to(setting.device)).inputs
    half = setting.dtype if setting.dtype in (torch.bfloat16, torch.float16) else None
    model, objective = adapted.model, setting.objective
    assert isinstance(model, PeftModel)
    with torch.autocast(setting.device.type, half or torch.bfloat16, enabled=half is not None):
        fresh = objective.logits(model, inputs).double()
        with model.disable_adapter():
            base = objective.logits(model, inputs).double()
    return float((fresh - base).norm() / base.norm().clamp_min(1e-30))
