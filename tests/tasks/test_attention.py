"""Attention by products: what torch's own kernel gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fedtune.scenario import load_scenario
from fedtune.tasks import attention as module
from fedtune.tasks.attention import NAME, TRIED, attend_quickly, attention, products
from fedtune.tasks.bases import base_path, load_base

EXACT = {"rtol": 1e-10, "atol": 1e-12}


@given(
    st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 9),
    st.integers(1, 8), st.sampled_from(["none", "causal", "bool", "float"]),
    st.sampled_from([None, 0.3]), st.integers(0, 99),
)  # fmt: skip
def test_products_are_what_the_fused_kernel_gives(n, heads, groups, tokens, d, mask, scale, seed):
    torch.manual_seed(seed)
    query = torch.randn(n, heads * groups, tokens, d, dtype=torch.float64, requires_grad=True)
    key, value = (
        torch.randn(n, heads, tokens, d, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    given_mask = {
        "bool": (torch.rand(n, 1, tokens, tokens) < 0.5) | torch.eye(tokens, dtype=torch.bool),
        "float": torch.randn(n, 1, tokens, tokens, dtype=torch.float64),
    }.get(mask)
    layer = SimpleNamespace(is_causal=mask == "causal", num_key_value_groups=groups)
    slope = torch.randn(n, tokens, heads * groups, d, dtype=torch.float64)
    found = []
    for attend in (attention, sdpa_attention_forward):
        out, weights = attend(layer, query, key, value, given_mask, scaling=scale)
        assert weights is None
        found.append([out, *torch.autograd.grad(out, (query, key, value), slope)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_a_mask_of_another_precision_is_that_of_the_queries():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8, dtype=torch.float64)
    mask = torch.randn(2, 1, 5, 5)
    found, wanted = (products(query, key, value, m) for m in (mask, mask.double()))
    assert torch.equal(found, wanted)


SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
    "vocab_size": 60, "num_key_value_heads": 2, "image_size": 8, "patch_size": 2, "num_channels": 1,
    "pad_token_id": 0, "embedding_size": 32, "n_head": 4, "n_embd": 32, "n_layer": 2,
    "dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 32, "num_labels": 3,
}  # fmt: skip


@pytest.mark.parametrize("kind", TRIED)
def test_every_kind_of_model_gives_the_same_either_way(kind, monkeypatch):
    torch.manual_seed(0)
    named = {"architectures": ["DeiTForImageClassification"]} if kind == "deit" else {}
    config = AutoConfig.for_model(kind, **SIZES, **named)
    images = kind in ("vit", "deit")
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    model = auto.from_config(config).double().eval()
    attend_quickly(model)
    assert model.config._attn_implementation == NAME
    if images:
        inputs = {"pixel_values": torch.randn(3, 1, 8, 8, dtype=torch.float64)}
    else:
        seen = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 8 + [0]])
        inputs = {"input_ids": torch.randint(5, 50, (3, 9)) * seen, "attention_mask": seen}
    called = []
    monkeypatch.setattr(module, "products", lambda *a, f=module.products: called.append(1) or f(*a))
    found = []
    for way in (NAME, "sdpa"):
        model.set_attn_implementation(way)
        logits = model(**inputs).logits
        inner = [p for p in model.parameters() if p.requires_grad]
        found.append(
            [logits, *torch.autograd.grad(logits.square().sum(), inner, allow_unused=True)]
        )
    assert len(called) == 2
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_a_language_model_gives_the_same_tokens_either_way():
    task = load_scenario("quickstart").task.model_copy(
        update={"base": "builtin:llama-words", "kind": "causal-lm"}
    )
    model = load_base(task, []).model.eval()
    prompt = torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    said = []
    for way in (NAME, "sdpa"):
        model.set_attn_implementation(way)
        said.append(model.generate(prompt, max_new_tokens=8, do_sample=False))
    assert torch.equal(*said)


def test_what_the_kernel_is_better_at_is_left_to_it(monkeypatch):
    monkeypatch.setattr(module, "products", lambda *a: pytest.fail("by products"))
    layer = SimpleNamespace(is_causal=False)
    for shape, dtype, dropout in (
        ((1, 2, 33, 32), torch.float32, 0.0),
        ((1, 2, 4, 8), torch.bfloat16, 0.0),
        ((1, 2, 4, 8), torch.float32, 0.1),
    ):
        heads = [torch.randn(shape).to(dtype) for _ in range(3)]
        assert attention(layer, *heads, None, dropout)[0].shape == (1, shape[2], 2, shape[3])


def test_values_may_be_narrower_than_keys():
    query, key, value = (torch.randn(2, 3, 5, d, dtype=torch.float64) for d in (6, 6, 4))
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(products(query, key, value), wanted, **EXACT)


def test_a_kind_that_was_not_tried_keeps_the_kernel():
    config = AutoConfig.for_model("qwen3", **SIZES)
    model = AutoModelForCausalLM.from_config(config)
    attend_quickly(model)
    assert model.config._attn_implementation == "sdpa"


def test_what_was_asked_for_otherwise_stays():
    path = base_path("builtin:llama-words")
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    attend_quickly(model)
    assert model.config._attn_implementation == "eager"
