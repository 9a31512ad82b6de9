"""The gradient that LoRA-SB's frame is made of: by the path that the adapter acts on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from fedtune.adapters.wrap import wrap
from fedtune.cohort.base_gradient import base_gradients
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.stacked import adapted_layers
from fedtune.cohort.together import CohortBackend
from fedtune.scenario.adapter import AdapterSection
from fedtune.scenario.task import TaskSection
from fedtune.tasks.base import Table
from fedtune.tasks.bases import load_base
from fedtune.tasks.language import CausalLM
from tests.cohort import kit
from tests.kits.families import DECODERS, WORDS, save_family


def by_autograd(path: str, ids: torch.Tensor, layer: str) -> torch.Tensor:
    """The same by plain Transformers, on a model whose layer has a weight of its own."""
    model = AutoModelForCausalLM.from_pretrained(path).double().eval()
    module = model.get_submodule(layer)
    module.weight = nn.Parameter(module.weight.detach().clone())
    logits = model(input_ids=ids).logits[:, :-1]
    nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    return module.weight.grad


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("make", [SequentialBackend, CohortBackend])
def test_the_gradient_of_a_tied_head_leaves_the_embedding_out(tmp_path, name, make):
    path = save_family(name, tmp_path / "base", tied=True)
    base = load_base(TaskSection(kind="causal-lm", base=path, data="x.csv", text="text"), [])
    adapter = AdapterSection(targets=["lm_head"], rank=2)
    made = wrap(base, adapter, "lora", "shared", 0, torch.device("cpu"), torch.float64)
    ids = torch.randint(5, len(WORDS), (3, 8), generator=torch.Generator().manual_seed(2))
    data = Table({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)
    setting = replace(kit.setting(), adapted=made, data=data, objective=CausalLM())
    ((layer, _),) = adapted_layers(made.model).values()
    embedding = made.model.get_base_model().get_input_embeddings()
    assert layer.weight is embedding.weight
    (found,) = base_gradients(make(setting), setting, made.initial, np.arange(3)).values()
    torch.testing.assert_close(found, by_autograd(path, ids, "lm_head"), rtol=1e-8, atol=1e-12)
    assert layer.weight is embedding.weight
    assert not layer.weight.requires_grad
