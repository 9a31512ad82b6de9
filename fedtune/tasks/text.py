"""`text-classification`: any Transformers encoder (or decoder) with a classification head."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from fedtune.scenario.task import TaskSection
from fedtune.tasks.base import Classification
from fedtune.tasks.bases import load_base, load_tokenizer
from fedtune.tasks.examples import Examples
from fedtune.tasks.labels import encode_labels, keep_single_labels
from fedtune.tasks.lengths import fitting, longest, longest_row
from fedtune.tasks.sources import OWN_TEST, load_splits
from fedtune.tasks.tokens import Columns, TokenTable, tokenise
from fedtune.tasks.words import INTENTS, intents

CODE = "fedtune-class"
SEVERAL = "rows with several labels are left out"


def load_text(task: TaskSection) -> Examples:
    """The examples of a text classification task.

    Raises:
        ScenarioError: for data, a tokenizer or a base that does not fit.
    """
    needed = ("text", "text_pair", "label")
    splits, notes = load_splits(task, needed, {INTENTS: intents})
    single = DatasetDict({name: keep_single_labels(task, split) for name, split in splits.items()})
    labels, classes = encode_labels(task, single, drawn=OWN_TEST in notes)
    base = load_base(task, classes)
    tokenizer = load_tokenizer(task.base)
    length = longest(task, base.model, tokenizer)
    typed = task.text_pair is not None and getattr(base.model.config, "type_vocab_size", 0) > 1

    def encoded(length: int) -> dict[str, TokenTable]:
        return {
            name: _encode(task, split.add_column(CODE, labels[name]), tokenizer, length, typed)
            for name, split in single.items()
        }

    tables, objective = encoded(length), Classification()
    row = longest_row(tables.values())
    if (most := fitting(task, base.model, objective, row)) < row["input_ids"].shape[1]:
        tables = encoded(most)
        notes.append(f"data: rows are cut to {most} tokens, the most that {task.base} takes")
    dropped = sum(len(splits[n]) - len(single[n]) for n in splits)
    left_out = {SEVERAL: dropped} if dropped else {}
    notes += [f"data: {count} {what}" for what, count in left_out.items()]
    return Examples(
        base, objective, tables["train"], tables["test"], single["train"], classes,
        notes=[*notes, *base.notes], left_out=left_out,
    )  # fmt: skip


def _encode(
    task: TaskSection, rows: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, typed: bool
) -> TokenTable:
    filler = _filler(tokenizer)

    def encode(batch: Columns, rows: list[int]) -> Columns:
        pairs = None if task.text_pair is None else [as_text(v) for v in batch[task.text_pair]]
        texts = [as_text(value) for value in batch[task.text]]
        found = tokenizer(
            texts, pairs, truncation=True, max_length=length, return_token_type_ids=typed
        )
        kept: Columns = {"input_ids": [ids or [filler] for ids in found["input_ids"]]}
        if typed:
            kept["token_type_ids"] = [types or [0] for types in found["token_type_ids"]]
        return {**kept, CODE: batch[CODE]}

    settings = ("text-classification", task.text, task.text_pair, length, typed)
    encoded = tokenise(rows, tokenizer, encode, settings)
    return TokenTable.of(encoded, tokenizer.pad_token_id, targets=CODE)


def as_text(value: Any) -> str:
    """A cell, of text or a whole number, as text; an absent one is empty."""
    return "" if value is None else str(value)


def _filler(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands for an empty text where the tokenizer adds none of its own."""
    for token in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.unk_token_id):
        if isinstance(token, int) and token != tokenizer.pad_token_id:
            return token
    return 0 if tokenizer.pad_token_id != 0 else 1
