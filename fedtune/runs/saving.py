"""What a run leaves of its model: a PEFT adapter, or a Transformers folder, and local heads."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedtune.adapters.factors import exact_factors
from fedtune.adapters.layout import BASE, A, B, Tensors
from fedtune.adapters.wrap import PREFIX, Adapted
from fedtune.cohort.stacked import adapted_layers
from fedtune.errors import ScenarioError
from fedtune.files import write_atomically
from fedtune.runs.build import Federation
from fedtune.runs.directory import RunDirectory
from fedtune.scenario.task import TaskSection
from fedtune.tasks.bases import base_path, load_tokenizer
from fedtune.tasks.conv import ConvForImageClassification
from fedtune.tasks.images import load_processor

SAVED = ".modules_to_save.default."
TASK_TYPES = {"text-classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM"}


def save_result(federation: Federation, arrays: dict[str, Tensor], directory: RunDirectory) -> None:
    """Write `adapter/` (or `model/`), and `clients/` where heads are local."""
    final = {**federation.adapted.initial, **arrays}
    if federation.adapted.config is None:
        save_model(federation, final, directory.model)
        return
    save_adapter(federation.adapted, final, directory.adapter, federation.scenario.task.kind)
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


def save_adapter(adapted: Adapted, tensors: dict[str, Tensor], folder: Path, kind: str) -> None:
    """Write a folder that `PeftModel.from_pretrained` loads; equal runs give equal bytes.

    Beside PEFT's two files stands `labels.json`, the list of the classes in the head's order: a
    base gets a head for them by `from_pretrained(base, id2label=dict(enumerate(labels)))`. (A
    `config.json` would make Transformers take the folder for a whole model.)

    Args:
        kind: of the task, which PEFT's Auto classes ask for.
    """
    assert adapted.config is not None
    assert isinstance(adapted.model, PeftModel)
    tensors = {n: t.detach().cpu() for n, t in adapted.layout.folded(tensors).items()}
    tensors, patterns = with_base_moved(tensors, adapted.model)
    plain = {
        spec.name: tensors[spec.name].float().contiguous()
        for spec in adapted.layout.specs
        if spec.name in tensors
    }
    plain |= saved_buffers(adapted.model)
    base = adapted.model.get_base_model()
    told = {"inference_mode": True, **_loaded_by(kind, base)}
    config = _sorted(adapted.config.to_dict() | patterns | told)
    text = json.dumps(config, indent=2, sort_keys=True, default=str) + "\n"
    write_atomically(folder / "adapter_config.json", text.encode())
    write_atomically(folder / "adapter_model.safetensors", save(plain, metadata={"format": "pt"}))
    write_atomically(folder / "README.md", card(kind, base).encode())
    if kind.endswith("classification") and isinstance(base, PreTrainedModel):
        names = [base.config.id2label[place] for place in range(base.config.num_labels)]
        write_atomically(folder / "labels.json", (json.dumps(names, indent=2) + "\n").encode())


def saved_buffers(model: nn.Module) -> Tensors:
    """Buffers of modules that are saved whole (running statistics), by their names in the file.

    Training leaves them as they are, but PEFT loads such a module with all of its state or not.
    """
    parameters = {name for name, _ in model.named_parameters()}
    found = {n: t for n, t in model.state_dict().items() if SAVED in n and n not in parameters}
    plain = {n: t.float() if t.is_floating_point() else t for n, t in found.items()}
    return {n.replace(SAVED, "."): t.cpu().contiguous() for n, t in plain.items()}


def card(kind: str, base: nn.Module) -> str:
    """How an adapter is loaded without fedtune, as a model card."""
    if kind == "causal-lm":
        uses = "from peft import AutoPeftModelForCausalLM"
        loads = 'model = AutoPeftModelForCausalLM.from_pretrained("adapter")'
    else:
        auto = "AutoPeftModelForSequenceClassification" if kind in TASK_TYPES else "AutoPeftModel"
        uses = f"import json\nfrom peft import {auto}"
        loads = (
            'labels = json.load(open("adapter/labels.json"))  # the classes, in the head\'s order\n'
            f'model = {auto}.from_pretrained("adapter", id2label=dict(enumerate(labels)))'
        )
    return (
        f"---\nlibrary_name: peft\ntags: [lora, federated-learning, fedtune]\n---\n"
        f"A {type(base).__name__} with a low-rank adapter, trained federatedly by fedtune.\n\n"
        f"```python\n{uses}\n\n{loads}\n```\n"
    )


def _loaded_by(kind: str, base: nn.Module) -> dict[str, Any]:
    """What tells PEFT's Auto classes which class loads the base."""
    if kind in TASK_TYPES:
        return {"task_type": TASK_TYPES[kind]}
    owner = type(base)
    return {
        "auto_mapping": {"base_model_class": owner.__name__, "parent_library": owner.__module__}
    }


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


def save_reader(task: TaskSection, folder: Path) -> None:
    """Write what makes the model's inputs, an image processor or a tokenizer, if there is one."""
    with suppress(ScenarioError):
        if task.kind == "image-classification":
            load_processor(base_path(task.base)).save_pretrained(folder)
        else:
            load_tokenizer(task.base).save_pretrained(folder)


def _sorted(config: dict[str, Any]) -> dict[str, Any]:
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
