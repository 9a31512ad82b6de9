"""Results as other tools take them: a PEFT adapter, merged weights, local heads."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from fedtune.adapters.factors import exact_factors, truncated
from fedtune.adapters.layout import BASE, A, B, Tensors
from fedtune.adapters.wrap import Adapted
from fedtune.cohort.stacked import adapted_layers
from fedtune.errors import ScenarioError
from fedtune.files import write_atomically
from fedtune.runs.build import Federation
from fedtune.runs.directory import RunDirectory
from fedtune.scenario.task import TaskSection
from fedtune.tasks.bases import base_path, load_base, load_tokenizer
from fedtune.tasks.conv import ConvForImageClassification
from fedtune.tasks.images import load_processor

FORMATS = ("both", "adapter", "merged")
PREFIX = "base_model.model."


def save_result(federation: Federation, arrays: dict[str, Tensor], directory: RunDirectory) -> None:
    """Write `adapter/` (or `model/`), and `clients/` where heads are local."""
    final = {**federation.adapted.initial, **arrays}
    if federation.adapted.config is None:
        save_model(federation, final, directory.model)
        return
    save_adapter(federation.adapted, final, directory.adapter)
    for client, kept in federation.store.kept.items():
        names = [spec.name for spec in federation.adapted.layout.kept]
        if not names:
            break
        data = save({name: kept[name].detach().cpu().contiguous() for name in names})
        write_atomically(directory.path / "clients" / f"{client}.safetensors", data)


def save_model(federation: Federation, tensors: dict[str, Tensor], folder: Path) -> None:
    """Write a Transformers folder of a model whose own weights were voted on."""
    adapted = federation.adapted
    weights = {n: t.detach().float().cpu() for n, t in adapted.layout.matrices(tensors).items()}
    assert isinstance(adapted.model, PreTrainedModel)
    model = ConvForImageClassification(adapted.model.config)
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    save_reader(federation.scenario.task, folder)


def save_adapter(adapted: Adapted, tensors: dict[str, Tensor], folder: Path) -> None:
    """Write a folder that `PeftModel.from_pretrained` loads; equal runs give equal bytes."""
    assert adapted.config is not None
    tensors = {n: t.detach().cpu() for n, t in adapted.layout.folded(tensors).items()}
    tensors, patterns = with_base_moved(tensors, adapted.model)
    plain = {
        spec.name: tensors[spec.name].float().contiguous()
        for spec in adapted.layout.specs
        if spec.name in tensors
    }
    config = _sorted(adapted.config.to_dict() | patterns | {"inference_mode": True})
    text = json.dumps(config, indent=2, sort_keys=True, default=str) + "\n"
    write_atomically(folder / "adapter_config.json", text.encode())
    write_atomically(folder / "adapter_model.safetensors", save(plain, metadata={"format": "pt"}))


def with_base_moved(tensors: Tensors, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
    """Changes of the base's own weights as more columns of B and rows of A, exactly.

    Args:
        tensors: of a plain LoRA adapter, and `<layer>.base.weight` of layers whose base moved.
        model: with the adapters, for their scaling.

    Returns:
        The tensors, and what changes in the `LoraConfig` that takes them.
    """
    found = {name: tensor for name, tensor in tensors.items() if BASE not in name}
    moved = {n.removesuffix(BASE): t for n, t in tensors.items() if BASE in n}
    ranks: dict[str, float] = {}
    alphas: dict[str, float] = {}
    for layer, (_, scaling) in adapted_layers(model).items() if moved else ():
        u, v = exact_factors(moved[layer])
        a, b = layer + A, layer + B
        found[a] = torch.cat([tensors[a].double(), v])
        found[b] = torch.cat([tensors[b].double(), u], 1)
        name = re.escape(layer.removeprefix(PREFIX))
        ranks[name] = len(found[a])
        alphas[name] = scaling * len(found[a])
    scaled = {"rank_pattern": ranks, "alpha_pattern": alphas, "use_rslora": False}
    return found, scaled if moved else {}


def shortened(directory: RunDirectory, folder: Path, rank: int) -> float:
    """Write the best adapter of a rank for a run; gives the largest relative error of a layer.

    Raises:
        ScenarioError: if the rank is not positive, or the run has no adapter.
    """
    if directory.scenario.task.kind == "least-squares" or directory.model.is_dir():
        raise ScenarioError("--rank: the run's result is not an adapter")
    if rank < 1:
        raise ScenarioError(f"--rank {rank}: must be at least 1")
    model = load_model(directory)
    config = json.loads((directory.adapter / "adapter_config.json").read_text("utf-8"))
    tensors = load_file(directory.adapter / "adapter_model.safetensors")
    scaling = {name: s for name, (_, s) in adapted_layers(model).items()}
    errors = [0.0]
    for layer, own in scaling.items():
        b, a, error = truncated(own * tensors[layer + B], tensors[layer + A], rank)
        tensors[layer + B] = functional.pad(b, (0, rank - b.shape[1])).contiguous()
        tensors[layer + A] = functional.pad(a, (0, 0, 0, rank - len(a))).contiguous()
        errors.append(error)
    plain = {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
    }
    text = json.dumps(config | plain, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / "adapter_config.json", text.encode())
    write_atomically(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    return max(errors)


def load_model(directory: RunDirectory | str | Path) -> PeftModel | PreTrainedModel:
    """The run's result as a PEFT model on the CPU, ready to use; a whole model where it is one.

    Raises:
        ScenarioError: if the run has no result yet.
    """
    if not isinstance(directory, RunDirectory):
        directory = RunDirectory.open(Path(directory))
    if not directory.summary:
        raise ScenarioError(
            f"{str(directory.path)!r}: the run has not ended; go on with it by "
            f"fedtune run --resume {directory.path}"
        )
    scenario = directory.scenario
    if directory.model.is_dir():
        return ConvForImageClassification.from_pretrained(directory.model).eval()
    classes = directory.summary["classes"]
    base = load_base(scenario.task, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(base.model, str(directory.adapter)).eval()


def export(directory: RunDirectory, out: Path, form: str) -> list[Path]:
    """Write a run's result as an adapter, as merged weights, or both.

    With local heads there is no one model to merge, so `both` writes the adapter only.

    Args:
        form: one of `FORMATS`.

    Returns:
        The folders written.

    Raises:
        ScenarioError: if the run has no result yet, or `form` is unknown.
    """
    if form not in FORMATS:
        raise ScenarioError(f"--format {form!r}: allowed: {', '.join(FORMATS)}")
    if directory.scenario.task.kind == "least-squares":
        raise ScenarioError(
            "export: a least-squares run has no model; its solution is in "
            f"{directory.adapter / 'adapter_model.safetensors'}"
        )
    if directory.model.is_dir():
        if form == "adapter":
            raise ScenarioError("--format 'adapter': the result is a whole model; use 'merged'")
        shutil.copytree(directory.model, out / "merged", dirs_exist_ok=True)
        return [out / "merged"]
    local = directory.scenario.task.head == "local"
    if local and form == "merged":
        raise ScenarioError("--format 'merged': every client has a head of its own; use 'adapter'")
    try:
        return _export(directory, out, "adapter" if local else form)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ScenarioError(f"export of {str(directory.path)!r}: {reason}") from None


def _export(directory: RunDirectory, out: Path, form: str) -> list[Path]:
    model = load_model(directory)
    written = []
    if form in ("both", "adapter"):
        for file in sorted(directory.adapter.iterdir()):
            write_atomically(out / "adapter" / file.name, file.read_bytes())
        written.append(out / "adapter")
    if form in ("both", "merged"):
        assert isinstance(model, PeftModel)
        merged = model.merge_and_unload()
        merged.save_pretrained(out / "merged")
        save_reader(directory.scenario.task, out / "merged")
        written.append(out / "merged")
    return written


def save_reader(task: TaskSection, folder: Path) -> None:
    """Write what makes the model's inputs, an image processor or a tokenizer, if there is one."""
    with suppress(ScenarioError):
        if task.kind == "image-classification":
            load_processor(base_path(task.base)).save_pretrained(folder)
        else:
            load_tokenizer(task.base).save_pretrained(folder)


def _sorted(config: dict[str, Any]) -> dict[str, Any]:
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
