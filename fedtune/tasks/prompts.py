"""How a row becomes a prompt and a response, and the tokens of a prompt."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks.text import as_text


@dataclass(frozen=True)
class Prompts:
    """How a row becomes a prompt and a response.

    Attributes:
        pieces: of the prompt: a literal text, then a column or None.
        response: column of the response.
    """

    pieces: tuple[tuple[str, str | None], ...]
    response: str

    @property
    def columns(self) -> list[str]:
        """The columns that a prompt is made of."""
        return [column for _, column in self.pieces if column is not None]

    def text(self, row: Mapping[str, Any]) -> str:
        """The prompt of a row."""
        return "".join(
            text if column is None else text + as_text(row[column]) for text, column in self.pieces
        )


def prompts_of(task: TaskSection) -> Prompts | None:
    """What a task says of prompts; None where it is plain text.

    Raises:
        ScenarioError: for a template that cannot be read.
    """
    if task.response is None:
        return None
    if task.instruction is not None:
        return Prompts((("", task.instruction), ("\n", None)), task.response)
    assert task.template is not None
    key = f"task.template = {task.template!r}"
    try:
        parsed = list(string.Formatter().parse(task.template))
    except ValueError as error:
        raise ScenarioError(f"{key}: {error}") from None
    for _, name, form, conversion in parsed:
        if name is not None and (not name or form or conversion):
            raise ScenarioError(f"{key}: write a column as {{column}}, nothing else in the braces")
    pieces = tuple((text, name) for text, name, _, _ in parsed)
    if not any(name for _, name in pieces):
        raise ScenarioError(f"{key}: names no column; write it as {{column}}")
    return Prompts(pieces, task.response)


def prompt_ids(
    prompts: Prompts, batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """The tokens of prompts, opening token included, closing one not."""
    rows = zip(*(batch[column] for column in prompts.columns), strict=True)
    texts = [prompts.text(dict(zip(prompts.columns, row, strict=True))) for row in rows]
    return [open_ended(ids, tokenizer) for ids in tokenizer(texts)["input_ids"]]


def open_ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a text without a closing one."""
    closed = bool(ids) and ids[-1] == tokenizer.eos_token_id
    return ids[:-1] if closed else ids
