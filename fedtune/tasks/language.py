"""`causal-lm`: any Transformers decoder on plain text, or on prompts and responses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedtune.errors import ScenarioError, listed
from fedtune.scenario.task import TaskSection
from fedtune.tasks.base import Inputs, at_least_float32
from fedtune.tasks.bases import load_base, load_tokenizer
from fedtune.tasks.cache import Arrays
from fedtune.tasks.examples import Examples
from fedtune.tasks.generation import ExactMatch, answer
from fedtune.tasks.lengths import fitting, longest, longest_row, most_tokens, positions
from fedtune.tasks.prompts import Prompts, open_ended, prompt_ids, prompts_of
from fedtune.tasks.sources import load_splits
from fedtune.tasks.text import as_text
from fedtune.tasks.tokens import IGNORED, Columns, TokenTable, tokenise
from fedtune.tasks.words import SUMS, sums

TOO_LONG = "rows without a token to learn within max_length"


class CausalLM:
    """Cross-entropy of the next token over the counted tokens; perplexity and token accuracy."""

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Scores of the next token at each position, (n, positions, vocabulary)."""
        out: Tensor = model(**inputs, use_cache=False).logits
        return out

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Each example's cross-entropy summed over its counted tokens, (n,)."""
        scores = at_least_float32(logits[:, :-1])
        tokens = F.cross_entropy(
            scores.flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=IGNORED
        )
        return tokens.view(len(labels), -1).sum(1)

    def counts(self, labels: Tensor) -> Tensor:
        """Each example's counted tokens; its first token has nothing to be predicted from."""
        return (labels[:, 1:] != IGNORED).sum(1).float()

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Each example's counted tokens that are the most likely one, (n,)."""
        right = (logits[:, :-1].argmax(-1) == labels[:, 1:]) & (labels[:, 1:] != IGNORED)
        return {"token_accuracy": right.sum(1).double()}

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """Adds perplexity, exp of the mean loss of a token."""
        loss = means["loss"]
        return {**means, "perplexity": math.exp(loss) if loss < math.log(1e300) else math.inf}


def load_language(task: TaskSection) -> Examples:
    """The examples of a language modelling task.

    Raises:
        ScenarioError: for data, a tokenizer or a base that does not fit.
    """
    prompts = prompts_of(task)
    needed = ("instruction", "response") if prompts else ("text",)
    splits, notes = load_splits(task, needed, {SUMS: sums})
    for name, split in splits.items():
        for column in prompts.columns if prompts else ():
            if column not in split.column_names:
                raise ScenarioError(
                    f"task.template: no column {column!r} in {name}; it has: "
                    f"{listed(split.column_names)}"
                )
    base = load_base(task, [])
    tokenizer = load_tokenizer(task.base)
    length = longest(task, base.model, tokenizer)

    def tokens(length: int) -> dict[str, Arrays]:
        encode = (
            _responses(prompts, tokenizer, length) if prompts else _blocks(task, tokenizer, length)
        )
        settings = ("causal-lm", prompts, task.text, length)
        return {n: tokenise(s, tokenizer, encode, settings) for n, s in splits.items()}

    encoded, objective = tokens(length), CausalLM()
    tables = {name: _table(task, found, tokenizer) for name, found in encoded.items()}
    row = longest_row(tables.values())
    if (most := fitting(task, base.model, objective, row)) < row["input_ids"].shape[1]:
        encoded = tokens(most)
        tables = {name: _table(task, found, tokenizer) for name, found in encoded.items()}
        notes.append(f"data: blocks are cut to {most} tokens, the most that {task.base} takes")
    matcher = None
    if prompts is not None and task.extract is not None:
        matcher = _matcher(task, splits["test"], prompts, tokenizer, positions(base.model))
        _check_room(task, base.model, matcher)
    source = np.asarray(encoded["train"]["row"])
    lost = sum(len(split) - len(set(encoded[n]["row"].tolist())) for n, split in splits.items())
    left_out = {TOO_LONG: lost} if lost else {}
    notes += [f"data: {count} {what}" for what, count in left_out.items()]
    return Examples(
        base, objective, tables["train"], tables["test"], splits["train"], [], source, notes,
        matcher, left_out,
    )  # fmt: skip


def _check_room(task: TaskSection, model: PreTrainedModel, matcher: ExactMatch) -> None:
    """Raise `ScenarioError` if the longest prompt leaves no room for an answer."""
    ids = max((ids for ids, _ in matcher.pairs), key=len)
    filled = torch.tensor([ids + ids[-1:] * task.extract_tokens])
    row = {"input_ids": filled, "attention_mask": torch.ones_like(filled)}
    if (most := most_tokens(model, CausalLM(), row)) < filled.shape[1]:
        raise ScenarioError(
            f"task.extract_tokens = {task.extract_tokens}: with the longest prompt "
            f"{filled.shape[1]} tokens, and {task.base} takes at most {most}"
        )


def _closing(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _responses(
    prompts: Prompts, tokenizer: PreTrainedTokenizerBase, length: int
) -> Callable[[Columns, list[int]], Columns]:
    """Prompt, response, end of text: only response and end count."""
    end = _closing(tokenizer)

    def encode(batch: Columns, rows: list[int]) -> Columns:
        asked = prompt_ids(prompts, batch, tokenizer)
        texts = [as_text(value) for value in batch[prompts.response]]
        told = tokenizer(texts, add_special_tokens=False)["input_ids"]
        found: Columns = {"input_ids": [], "counted": [], "row": []}
        for row, prompt, response in zip(rows, asked, told, strict=True):
            ids = [*prompt, *response, *end][:length]
            if len(ids) > max(len(prompt), 1):
                found["input_ids"].append(ids)
                found["counted"].append(len(prompt))
                found["row"].append(row)
        return found

    return encode


def _blocks(
    task: TaskSection, tokenizer: PreTrainedTokenizerBase, length: int
) -> Callable[[Columns, list[int]], Columns]:
    """Plain text, closed by the end of text, cut into blocks of at most `length` tokens."""
    end = _closing(tokenizer)

    def encode(batch: Columns, rows: list[int]) -> Columns:
        texts = [as_text(value) for value in batch[task.text]]
        found: Columns = {"input_ids": [], "counted": [], "row": []}
        for row, ids in zip(rows, tokenizer(texts)["input_ids"], strict=True):
            ids = [*open_ended(ids, tokenizer), *end]
            blocks = [ids[i : i + length] for i in range(0, len(ids), length)]
            blocks = [block for block in blocks if len(block) > 1]
            found["input_ids"] += blocks
            found["counted"] += [0] * len(blocks)
            found["row"] += [row] * len(blocks)
        return found

    return encode


def _table(task: TaskSection, encoded: Arrays, tokenizer: PreTrainedTokenizerBase) -> TokenTable:
    if not len(encoded["row"]):
        raise ScenarioError(
            f"task.data = {task.data!r}: no row has a token to learn within max_length"
        )
    return TokenTable.of(encoded, tokenizer.pad_token_id, counted="counted")


def _matcher(
    task: TaskSection,
    rows: Dataset,
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    places: int | None,
) -> ExactMatch:
    """Raises `ScenarioError` for a pattern, or a number of tokens, that cannot be used."""
    key = f"task.extract = {task.extract!r}"
    try:
        pattern = re.compile(task.extract or "")
    except re.error as error:
        raise ScenarioError(f"{key}: {error}") from None
    if pattern.groups < 1:
        raise ScenarioError(f"{key}: needs one group, (...)")
    if places is not None and task.extract_tokens >= places:
        raise ScenarioError(
            f"task.extract_tokens = {task.extract_tokens}: {task.base} takes at most {places} "
            "tokens, prompt included"
        )
    chosen = rows[: task.extract_examples]
    room = None if places is None else places - task.extract_tokens
    asked = [ids if room is None else ids[-room:] for ids in prompt_ids(prompts, chosen, tokenizer)]
    wanted = [answer(pattern, as_text(text)) for text in chosen[prompts.response]]
    pairs = [(ids, text) for ids, text in zip(asked, wanted, strict=True) if text and ids]
    if not pairs:
        raise ScenarioError(f"{key}: matches no response of the tests")
    return ExactMatch(tokenizer, pattern, pairs, task.extract_tokens)
