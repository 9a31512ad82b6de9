"""Attention by products: what torch's own kernel gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fedtune.scenario import load_scenario
from fedtune.tasks import attention as module
from fedtune.tasks.attention import NAME, attend_quickly, attention
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


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        ("builtin:vit-letters", "image-classification"),
        ("builtin:bert-words", "text-classification"),
        ("builtin:llama-words", "causal-lm"),
    ],
)
def test_a_base_gives_the_same_either_way(base, kind, monkeypatch):
    task = load_scenario("quickstart").task.model_copy(update={"base": base, "kind": kind})
    model = load_base(task, ["a", "b"]).model.double().eval()
    assert model.config._attn_implementation == NAME
    torch.manual_seed(0)
    if kind == "image-classification":
        inputs = {"pixel_values": torch.randn(3, 1, 8, 8, dtype=torch.float64)}
    else:
        seen = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 8 + [0]])
        inputs = {"input_ids": torch.randint(5, 50, (3, 9)), "attention_mask": seen}
    called = []
    monkeypatch.setattr(module, "products", lambda *a, f=module.products: called.append(1) or f(*a))
    quick = model(**inputs).logits
    assert len(called) == model.config.num_hidden_layers
    model.set_attn_implementation("sdpa")
    plain = model(**inputs).logits
    assert len(called) == model.config.num_hidden_layers
    if kind == "causal-lm":  # what padding tokens say is nobody's concern
        quick, plain = quick[seen.bool()], plain[seen.bool()]
    torch.testing.assert_close(quick, plain, **EXACT)


def test_what_was_asked_for_otherwise_stays():
    path = base_path("builtin:llama-words")
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    attend_quickly(model)
    assert model.config._attn_implementation == "eager"
