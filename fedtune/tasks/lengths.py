"""How many tokens of a row a base takes: by its configuration, its position table, and a try."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedtune.errors import ScenarioError, first_line
from fedtune.scenario.task import TaskSection

DEFAULT_LENGTH = 128
LIMITS = ("max_position_embeddings", "max_seq_len")
TABLE = "position_embeddings"


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
        raise too_long(task, places)
    return task.max_length or min(DEFAULT_LENGTH, places or DEFAULT_LENGTH)


def too_long(task: TaskSection, places: int) -> ScenarioError:
    """The one line for a scenario that asks for more tokens than a base takes."""
    return ScenarioError(
        f"task.max_length = {task.max_length}: {task.base} takes at most {places} tokens"
    )


def positions(model: PreTrainedModel) -> int | None:
    """The most tokens that a model takes; None where its configuration names no limit.

    A position table with a padding index (RoBERTa and its kin) begins to count behind it.
    """
    given = (getattr(model.config, name, None) for name in LIMITS)
    places = next((n for n in given if isinstance(n, int) and n > 0), None)
    return (
        None if places is None else places - max((n + 1 for n in padding_places(model)), default=0)
    )


def padding_places(model: nn.Module) -> list[int]:
    """The padding index of each position table that begins to count behind one."""
    tables = (m for name, m in model.named_modules() if name.rpartition(".")[2] == TABLE)
    return [n for m in tables if isinstance(n := getattr(m, "padding_idx", None), int)]


def fitting(task: TaskSection, model: PreTrainedModel, widest: int) -> int:
    """How many tokens of a data set's rows the base takes, found by trying the widest one.

    Args:
        widest: tokens of the longest row, or of a prompt with its answer.

    Raises:
        ScenarioError: if it takes fewer and the scenario says how many, or takes none.
    """
    most = most_tokens(model, widest)
    if not most:
        raise ScenarioError(
            f"task.base = {task.base!r}: not even one token goes through it: {_fault(model, 1)}"
        )
    if most < widest and task.max_length is not None:
        raise too_long(task, most)
    return most


def most_tokens(model: PreTrainedModel, width: int) -> int:
    """The most tokens, up to a width, of a row that goes through a model; found by trying.

    Args:
        model: the base, on the CPU, where an index beyond a table is an error.
        width: of the longest row.

    Returns:
        `width` where such a row goes through; 0 where not even one token does.
    """
    if _fault(model, width) is None:
        return width
    least, most = 0, width
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if _fault(model, middle) is None else (least, middle)
    return least


@torch.no_grad()
def _fault(model: PreTrainedModel, width: int) -> str | None:
    """Why a row of so many tokens does not go through, or None."""
    words = model.get_input_embeddings().weight.shape[0]
    token = ((getattr(model.config, "pad_token_id", None) or 0) + 1) % words
    try:
        model(input_ids=torch.full((1, width), token))
    except (IndexError, RuntimeError, ValueError) as error:
        return first_line(error)
    return None
