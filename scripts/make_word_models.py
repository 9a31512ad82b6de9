"""Makes fedtune/builtin/bert-words and llama-words: tiny bases for the built-in text.

The encoder has learned which words a sequence holds; the decoder has read subtractions ("take two
from seven leaves five"), never an addition. Two minutes; the files are committed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fedtune.tasks.words import NUMBERS, SPECIAL, vocabulary

BUILTIN = Path(__file__).parent.parent / "fedtune" / "builtin"
WORDS = vocabulary()


def make_tokenizer(opening: str, closing: str | None, **named: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(t, WORDS.index(t)) for t in (opening, closing) if t]
    single = f"{opening} $A {closing}" if closing else f"{opening} $A"
    inner.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B {closing}" if closing else f"{single} $B",
        special_tokens=special,
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64, **named
    )


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = [(a, b) for a in range(19) for b in range(a + 1)]
    texts = [f"take {NUMBERS[b]} from {NUMBERS[a]} leaves {NUMBERS[a - b]}" for a, b in pairs]
    end = tokenizer.eos_token_id
    ids = torch.tensor([[*row, end] for row in tokenizer(texts)["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    for _ in range(1500):
        batch = ids[torch.randperm(len(ids))[:64]]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"subtractions: loss {loss.item():.3f}")


def read_words(encoder: BertForSequenceClassification) -> None:
    """Teach the first position which words a sequence of random words holds."""
    optimizer = torch.optim.AdamW(encoder.parameters(), 2e-3)
    for _ in range(2500):
        words = torch.randint(len(SPECIAL), len(WORDS), (64, int(torch.randint(3, 12, ()))))
        ends = torch.tensor([WORDS.index("[CLS]"), WORDS.index("[SEP]")]).expand(64, 2)
        ids = torch.cat([ends[:, :1], words, ends[:, 1:]], 1)
        held = torch.zeros(64, len(WORDS)).scatter_(1, words, 1.0)
        logits = encoder(input_ids=ids).logits
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, held)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"words held: loss {loss.item():.3f}")


def main() -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer("[CLS]", "[SEP]", cls_token="[CLS]", sep_token="[SEP]")
    encoder = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=64, pad_token_id=0,
            num_labels=len(WORDS), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            initializer_range=0.1,
        )
    )  # fmt: skip
    read_words(encoder)
    encoder.bert.config.num_labels = 2
    encoder.bert.save_pretrained(BUILTIN / "bert-words")
    tokenizer.save_pretrained(BUILTIN / "bert-words")
    tokenizer = make_tokenizer("[BOS]", None, bos_token="[BOS]", eos_token="[EOS]")
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=96, max_position_embeddings=64,
            tie_word_embeddings=True, pad_token_id=0, bos_token_id=WORDS.index("[BOS]"),
            eos_token_id=WORDS.index("[EOS]"),
        )
    )  # fmt: skip
    pretrain(decoder, tokenizer)
    decoder.save_pretrained(BUILTIN / "llama-words")
    tokenizer.save_pretrained(BUILTIN / "llama-words")


if __name__ == "__main__":
    main()
