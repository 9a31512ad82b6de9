"""`text-classification`: any Transformers encoder (or decoder) with a classification head."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks.base import Classification
from fedtune.tasks.bases import load_base, load_tokenizer
from fedtune.tasks.examples import Examples
from fedtune.tasks.labels import encode_labels, keep_single_labels
from fedtune.tasks.sources import load_splits
from fedtune.tasks.tokens import Columns, TokenTable, tokenise
from fedtune.tasks.words import INTENTS, intents

DEFAULT_LENGTH = 128
CODE = "fedtune-class"


def load_text(task: TaskSection) -> Examples:
    """The examples of a text classification task.

    Raises:
        ScenarioError: for data, a tokenizer or a base that does not fit.
    """
    needed = ("text", "text_pair", "label")
    splits, notes = load_splits(task, needed, {INTENTS: intents})
    single = DatasetDict({name: keep_single_labels(task, split) for name, split in splits.items()})
    labels, classes = encode_labels(task, single)
    base = load_base(task, classes)
    tokenizer = load_tokenizer(task.base)
    length = longest(task, base.model, tokenizer)
    typed = task.text_pair is not None and getattr(base.model.config, "type_vocab_size", 0) > 1
    tables = {
        name: _encode(task, split.add_column(CODE, labels[name]), tokenizer, length, typed)
        for name, split in single.items()
    }
    if dropped := sum(len(splits[n]) - len(single[n]) for n in splits):
        notes.append(f"data: {dropped} rows with several labels are left out")
    return Examples(
        base, Classification(), tables["train"], tables["test"], single["train"], classes,
        notes=notes,
    )  # fmt: skip


def longest(task: TaskSection, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens of an example: the scenario's, or 128, within what the base takes.

    Raises:
        ScenarioError: if the scenario asks for more, or the tokenizer knows more ids than the base.
    """
    ids, known = len(tokenizer), model.get_input_embeddings().weight.shape[0]
    if ids > known:
        raise ScenarioError(
            f"task.base = {task.base!r}: its tokenizer has {ids} tokens, the model {known}"
        )
    places = positions(model)
    if places is not None and task.max_length is not None and task.max_length > places:
        raise ScenarioError(
            f"task.max_length = {task.max_length}: {task.base} takes at most {places} tokens"
        )
    return task.max_length or min(DEFAULT_LENGTH, places or DEFAULT_LENGTH)


def positions(model: PreTrainedModel) -> int | None:
    """The most tokens that a model takes; None where its configuration names no limit."""
    places = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(places, int) or places <= 0:
        return None
    offset = getattr(model.config, "model_type", "") in OFFSET_POSITIONS
    return places - 1 - (model.config.pad_token_id or 0) if offset else places


OFFSET_POSITIONS = (
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
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
    """A cell as text; an absent one is empty."""
    return "" if value is None else str(value)


def _filler(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands for an empty text where the tokenizer adds none of its own."""
    for token in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.unk_token_id):
        if isinstance(token, int) and token != tokenizer.pad_token_id:
            return token
    return 0 if tokenizer.pad_token_id != 0 else 1
