"""Tiny language models of the common architectures, saved as a user's folder would be."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from fedtune.tasks.words import vocabulary

WORDS = vocabulary()


def tokenizer(opening=None, closing=None, pad=None, eos=None) -> PreTrainedTokenizerFast:
    """One token a word; adds what is named, and knows of a padding token only if told."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [t for t in (opening, closing) if t]
    if ends:
        single = " ".join([opening or "", "$A", closing or ""]).strip()
        pair = f"{single} $B:1 {closing}:1" if closing else f"{single} $B"
        inner.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(t, WORDS.index(t)) for t in ends]
        )
    named = {"pad_token": pad, "eos_token": eos, "bos_token": opening}
    given = {key: value for key, value in named.items() if value}
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", **given)


def save(kind: str, folder: Path) -> str:
    """A `bert`, `llama` or `gpt2` folder; only BERT's tokenizer has a padding token."""
    torch.manual_seed(7)
    common = {"vocab_size": len(WORDS), "initializer_range": 0.3}
    if kind == "bert":
        model = BertModel(
            BertConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                max_position_embeddings=40, **common,
            )
        )  # fmt: skip
        words = tokenizer("[CLS]", "[SEP]", pad="[PAD]")
    elif kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=24, max_position_embeddings=40, **common,
            )
        )  # fmt: skip
        words = tokenizer("[BOS]", eos="[EOS]")
    else:
        model = GPT2LMHeadModel(
            GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=40, **common)
        )
        words = tokenizer(eos="[EOS]")
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def save_classifier(folder: Path, names: list[str] | int, kind: str = "bert") -> str:
    """A folder of one of `CLASSIFIERS` with a head for classes, or for so many."""
    torch.manual_seed(7)
    config, model = CLASSIFIERS[kind]
    labels = {"num_labels": names} if isinstance(names, int) else {
        "id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)},
    }  # fmt: skip
    model(config(**labels)).save_pretrained(folder)
    if kind in PICTURES:
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    else:
        tokenizer("[CLS]", "[SEP]", pad="[PAD]").save_pretrained(folder)
    return str(folder)


SMALL = {
    "vocab_size": len(WORDS), "initializer_range": 0.3, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 24, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
    "initializer_range": 0.3,
}
STAGES = {"hidden_sizes": [8] * 4, "depths": [1] * 4}
CLASSIFIERS = {
    "bert": (partial(BertConfig, **SMALL, max_position_embeddings=40),
             BertForSequenceClassification),
    "roberta": (partial(RobertaConfig, **SMALL, max_position_embeddings=40),
                RobertaForSequenceClassification),
    "distilbert": (partial(DistilBertConfig, vocab_size=len(WORDS), dim=16, n_layers=1, n_heads=2,
                           hidden_dim=24), DistilBertForSequenceClassification),
    "deberta": (partial(DebertaV2Config, **SMALL), DebertaV2ForSequenceClassification),
    "llama": (partial(LlamaConfig, **SMALL, num_key_value_heads=2, max_position_embeddings=40),
              LlamaForSequenceClassification),
    "vit": (partial(ViTConfig, **VISION), ViTForImageClassification),
    "swin": (partial(SwinConfig, image_size=16, patch_size=2, embed_dim=8, depths=[1],
                     num_heads=[2], window_size=4), SwinForImageClassification),
    "convnext": (partial(ConvNextConfig, **STAGES, image_size=32), ConvNextForImageClassification),
    "resnet": (partial(ResNetConfig, **STAGES, embedding_size=8), ResNetForImageClassification),
}  # fmt: skip
PICTURES = ("vit", "swin", "convnext", "resnet")


def as_csv(folder: Path, name: str, rows: list[dict[str, str]]) -> str:
    """A CSV file of the rows."""
    import pandas as pd

    path = folder / name
    pd.DataFrame(rows).to_csv(path, index=False)
    return str(path)
