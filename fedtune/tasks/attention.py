"""Attention of small heads on a CPU: plain products, where torch's fused kernel is slower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "fedtune"
SMALL = 1024  # numbers of a head up to which products are quicker: scripts/bench_attention.py
DTYPES = (torch.float32, torch.float64)  # in bfloat16 the kernel is more exact
TRIED = (  # others may choose what they hand over by the name of the kernel
    "bert", "deit", "distilbert", "electra", "gpt2", "llama", "mistral", "qwen2", "roberta", "vit",
)  # fmt: skip


def attend_quickly(model: PreTrainedModel) -> None:
    """Let a model of a tried kind that attends by torch's fused kernel do so by `attention`."""
    config = model.config
    if config.model_type in TRIED and config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for attention: by `products` where they are quicker.

    Args:
        query: (n, heads, tokens, d); keys and values may have fewer heads.
        attention_mask: bool, true where a token is seen, or a float that is added.

    Returns:
        (n, tokens, heads, d), and no weights.
    """
    large = max(query.shape[2], key.shape[2]) * query.shape[3] > SMALL
    if large or dropout or query.device.type != "cpu" or query.dtype not in DTYPES:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **more
        )
    if (groups := getattr(module, "num_key_value_groups", 1)) > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and query.shape[2] > 1:
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        attention_mask = seen.tril()
    out = products(query, key, value, attention_mask, scaling)
    return out.transpose(1, 2).contiguous(), None


def products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scaling: float | None = None,
) -> Tensor:
    """softmax(s · q·kᵀ + mask)·v, after Vaswani et al. (2017), eq. 1; s is 1/√d where not given."""
    shape = query.shape
    q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (query, key, value))
    q = q * (shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is None:
        scores = torch.bmm(q, k.mT)
    else:
        if mask.dtype == torch.bool:
            lowest = torch.finfo(q.dtype).min
            mask = q.new_zeros(mask.shape).masked_fill_(~mask, lowest)
        added = mask.to(q.dtype).expand(*shape[:3], -1)
        scores = torch.baddbmm(added.flatten(0, 1), q, k.mT)
    return torch.bmm(scores.softmax(-1), v).view(*shape[:-1], v.shape[-1])
