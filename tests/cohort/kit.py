"""Tiny models, data and work for the tests of the engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from fedtune.adapters.reading import read_layout
from fedtune.adapters.wrap import Adapted, PretrainedBase, wrap
from fedtune.cohort.backend import Setting
from fedtune.cohort.plan import ClientWork, plan_work
from fedtune.scenario.adapter import AdapterSection
from fedtune.scenario.local import LocalSection
from fedtune.tasks.base import Classification, Table

VOCABULARY = 40
CLASSES = 3
LENGTH = 9


def vit() -> PreTrainedModel:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        image_size=8, patch_size=4, num_channels=1, num_labels=CLASSES,
    )  # fmt: skip
    return ViTForImageClassification(config)


def swin() -> PreTrainedModel:
    """Layers of several widths within stages."""
    config = SwinConfig(
        image_size=8, patch_size=1, num_channels=1, embed_dim=8, depths=[1, 2, 1],
        num_heads=[1, 2, 2], window_size=2, num_labels=CLASSES,
    )  # fmt: skip
    return SwinForImageClassification(config)


def convnext() -> PreTrainedModel:
    """No attention; linear layers of other names."""
    config = ConvNextConfig(
        num_channels=1, patch_size=2, hidden_sizes=[8, 8], depths=[1, 1], num_stages=2,
        num_labels=CLASSES,
    )  # fmt: skip
    return ConvNextForImageClassification(config)


def resnet() -> PreTrainedModel:
    """No linear layer but that of the head."""
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=CLASSES
    )
    return ResNetForImageClassification(config)


def bert() -> PreTrainedModel:
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, num_labels=CLASSES,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def roberta() -> PreTrainedModel:
    config = RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, num_labels=CLASSES, pad_token_id=0,
        classifier_dropout=0.2,
    )  # fmt: skip
    return RobertaForSequenceClassification(config)


def gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16,
        num_labels=CLASSES, pad_token_id=0,
    )  # fmt: skip
    return GPT2ForSequenceClassification(config)


HEADS = {
    vit: "classifier",
    swin: "classifier",
    convnext: "classifier",
    resnet: "classifier",
    bert: "classifier",
    roberta: "classifier",
    gpt2: "score",
}


def adapted(
    model=vit,
    kind="lora",
    head="shared",
    dtype=torch.float64,
    seed=3,
    device="cpu",
    delivers=(),
    **adapter,
) -> Adapted:
    """A random base model with an adapter; equal arguments give equal weights."""
    torch.manual_seed(seed)
    base = model()
    names = frozenset(n for n, _ in base.named_parameters() if n.startswith(HEADS[model]))
    section = AdapterSection(**{"rank": 3, "alpha": 6.0, **adapter})
    return wrap(
        PretrainedBase(base, [HEADS[model]], names, "nowhere"),
        section, kind, head, seed, torch.device(device), dtype, delivers,
    )  # fmt: skip


def table(model=vit, rows=60, dtype=torch.float64, seed=5) -> Table:
    """Random examples; token sequences have lengths of their own and are padded with 0."""
    torch.manual_seed(seed)
    labels = torch.randint(CLASSES, (rows,))
    if model in (vit, swin, convnext, resnet):
        return Table(
            {"pixel_values": torch.randn(rows, 1, 8, 8, dtype=torch.float64).to(dtype)}, labels
        )
    lengths = torch.randint(2, LENGTH + 1, (rows,))
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    tokens = torch.randint(1, VOCABULARY, (rows, LENGTH)) * mask
    return Table({"input_ids": tokens, "attention_mask": mask}, labels, lengths)


def setting(
    model=vit, local=None, dtype=torch.float64, data=None, device="cpu", **kwargs
) -> Setting:
    made = adapted(model, dtype=dtype, device=device, **kwargs)
    where = torch.device(device)
    examples = (data or table(model, dtype=dtype)).to(where, dtype)
    return Setting(
        made, Classification(), examples, local or LocalSection(lr=0.05), 3, where, dtype
    )


SIZES = (7, 12, 3, 9)


def stirred(setting: Setting, seed=11) -> dict[str, torch.Tensor]:
    """Trained tensors away from B = 0, so that every gradient is different from zero."""
    torch.manual_seed(seed)
    return {
        s.name: setting.adapted.initial[s.name].to(setting.device, setting.master)
        + 0.1 * torch.randn(s.shape, dtype=torch.float64).to(setting.device, setting.master)
        for s in setting.layout.trained
    }


def works(setting: Setting, state=None, sizes=SIZES, server_round=1, seed=0) -> list[ClientWork]:
    """Clients of unequal size, all from one state (or one each)."""
    starts = np.cumsum([0, *sizes])
    made = []
    for client, size in enumerate(sizes):
        own = state[client] if isinstance(state, list) else state or stirred(setting)
        rows = np.arange(starts[client], starts[client] + size)
        made.append(plan_work(client, server_round, rows, own, setting.local, seed))
    return made


def change(setting: Setting, results, works) -> dict[int, torch.Tensor]:
    """Each client's change as one vector: s·(BA − B₀A₀) of every layer, and the head's change."""
    changes = {}
    frozen = {n: t.to(setting.device, setting.master) for n, t in setting.adapted.initial.items()}
    for result, work in zip(results, works, strict=True):
        after, before = {**frozen, **result.tensors}, {**frozen, **work.state}
        changes[result.client] = products(setting, after) - products(setting, before)
    return changes


def products(setting: Setting, tensors) -> torch.Tensor:
    """What is added to the base, as one float64 vector."""
    parts = []
    framed = any(spec.role == "R" for spec in setting.layout.specs)
    for spec in setting.layout.specs:
        value = tensors[spec.name].double()
        if spec.role == "R":
            value = value @ tensors[spec.name.replace("lora_R", "lora_A")].double()
            value = tensors[spec.name.replace("lora_R", "lora_B")].double() @ value
        elif spec.role == "B":
            value = value @ tensors[spec.name.replace("lora_B", "lora_A")].double()
        if spec.role != "A" and not (framed and spec.role == "B"):
            parts.append(value.reshape(-1))
    return torch.cat(parts)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return float((a - b).norm() / b.norm())


def laid_out_again(setting: Setting) -> Setting:
    """The same setting after its model's layers were changed by hand."""
    model = setting.adapted.model
    layout = read_layout(model, {"A", "B"}, "shared", ["classifier"])
    initial = {s.name: model.get_parameter(s.parameter).detach().clone() for s in layout.specs}
    return replace(setting, adapted=replace(setting.adapted, layout=layout, initial=initial))
