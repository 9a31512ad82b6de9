"""Random-weight folders of the common architectures, as a user's own checkpoint would lie there.

No weight is what an initialisation would make of it: normalisation weights and biases are drawn
too, so that a tensor which begins anew somewhere shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from fedtune.tasks.words import vocabulary
from tests.tasks.kit import tokenizer

WORDS = vocabulary()
SMALL = {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40,
}  # fmt: skip
ENDS = {"bos_token_id": WORDS.index("[BOS]"), "eos_token_id": WORDS.index("[EOS]")}
ENCODER_ENDS = {"opening": "[CLS]", "closing": "[SEP]", "pad": "[PAD]"}


@dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        config: name of its configuration's class, and
        model: of the class that is saved: a bare encoder, or a decoder with its language head.
        given: of the configuration.
        saved: a module that is trained whole, by a name that matches several modules.
        norm: the end of the names of its normalisation layers.
        kinds: of tasks that it serves.
    """

    config: str
    model: str
    given: dict[str, Any] = field(default_factory=dict)
    saved: str = ""
    norm: str = "LayerNorm"
    kinds: tuple[str, ...] = ("text-classification",)


CAUSAL = ("causal-lm", "text-classification")
FAMILIES = {
    "bert": Family("BertConfig", "BertModel", SMALL, "output.dense"),
    "roberta": Family(
        "RobertaConfig", "RobertaModel", {**SMALL, "pad_token_id": WORDS.index("[PAD]")},
        "output.dense",
    ),
    "distilbert": Family(
        "DistilBertConfig", "DistilBertModel",
        {"vocab_size": len(WORDS), "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
         "max_position_embeddings": 40},
        "ffn.lin1", "layer_norm",
    ),
    "albert": Family("AlbertConfig", "AlbertModel", {**SMALL, "embedding_size": 8}, "ffn_output"),
    "deberta-v2": Family(
        "DebertaV2Config", "DebertaV2Model",
        {**SMALL, "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm",
         "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 16},
        "output.dense",
    ),
    "modernbert": Family(
        "ModernBertConfig", "ModernBertModel",
        {**SMALL, "pad_token_id": WORDS.index("[PAD]"), "global_attn_every_n_layers": 2,
         "local_attention": 8},
        "mlp.Wo", "norm",
    ),
    "gpt2": Family(
        "GPT2Config", "GPT2LMHeadModel",
        {"vocab_size": len(WORDS), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40,
         **ENDS},
        "mlp.c_proj", "ln_1", CAUSAL,
    ),
    "opt": Family(
        "OPTConfig", "OPTForCausalLM",
        {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16, "pad_token_id": WORDS.index("[PAD]")},
        "fc2", "layer_norm", CAUSAL,
    ),
    "gpt-neox": Family(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", {**SMALL, **ENDS}, "mlp.dense_4h_to_h",
        "layernorm", CAUSAL,
    ),
    "llama": Family(
        "LlamaConfig", "LlamaForCausalLM", {**SMALL, **ENDS, "num_key_value_heads": 1},
        "mlp.down_proj", "norm", CAUSAL,
    ),
    "qwen2": Family(  # its tokenizer adds a token of its own
        "Qwen2Config", "Qwen2ForCausalLM",
        {**SMALL, "num_key_value_heads": 1, "vocab_size": len(WORDS) + 4}, "mlp.down_proj", "norm",
        CAUSAL,
    ),
    "gemma": Family(
        "GemmaConfig", "GemmaForCausalLM",
        {**SMALL, "num_key_value_heads": 1, "head_dim": 8}, "mlp.down_proj", "norm", CAUSAL,
    ),
    "vit": Family(
        "ViTConfig", "ViTModel",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 24, "image_size": 8, "patch_size": 4, "num_channels": 1},
        "fc2", "layernorm_before", ("image-classification",),
    ),
}  # fmt: skip
TEXT = [name for name, family in FAMILIES.items() if "text-classification" in family.kinds]
DECODERS = [name for name, family in FAMILIES.items() if "causal-lm" in family.kinds]


def stirred(model: PreTrainedModel, seed: int = 5) -> PreTrainedModel:
    """The model with every parameter moved by normal draws; ties stay."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model


def save_family(name: str, folder: Path, tied: bool | None = None, **given: Any) -> str:
    """A folder with a model of the family and what makes its inputs.

    Args:
        tied: whether a decoder's language head is its embedding; None: as the family has it.
        given: more of the configuration.
    """
    family = FAMILIES[name]
    config = {**family.given, **given}
    if tied is not None:
        config["tie_word_embeddings"] = tied
    made = getattr(transformers, family.config)(**config)
    torch.manual_seed(3)
    stirred(getattr(transformers, family.model)(made)).save_pretrained(folder)
    if name == "vit":
        transformers.ViTImageProcessor(
            size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]
        ).save_pretrained(folder)
    elif "causal-lm" in family.kinds:
        tokenizer("[BOS]", eos="[EOS]", pad="[PAD]" if name == "opt" else None).save_pretrained(
            folder
        )
    else:
        tokenizer(**ENCODER_ENDS).save_pretrained(folder)
    return str(folder)
