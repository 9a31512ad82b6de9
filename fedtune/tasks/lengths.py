"""How many tokens of a row a base takes: by its configuration, its position table, and a try."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedtune.errors import ScenarioError, first_line
from fedtune.scenario.task import TaskSection
from fedtune.tasks.base import Inputs, Objective
from fedtune.tasks.tokens import TokenTable

DEFAULT_LENGTH = 128
LIMITS = ("max_position_embeddings", "max_seq_len")
TABLE = "position_embeddings"


def longest(task: TaskSection, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens of an example: the scenario's, or 128, within what the base takes.

    Raises:
        ScenarioError: if the scenario asks for more, or the tokenizer knows more ids than the base.
    """
    ids, known = len(tokenizer), vocabulary(model)
    if known is not None and ids > known:
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
    behind = max((n + 1 for n in padding_places(model)), default=0)
    return None if places is None else places - behind


def padding_places(model: nn.Module) -> list[int]:
    """The padding index of each position table that begins to count behind one."""
    tables = (m for name, m in model.named_modules() if name.rpartition(".")[2] == TABLE)
    return [n for m in tables if isinstance(n := getattr(m, "padding_idx", None), int)]


def vocabulary(model: PreTrainedModel) -> int | None:
    """How many token ids a model knows; None where it has no table of them (CANINE hashes)."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):
        return None


def longest_row(tables: Iterable[TokenTable]) -> Inputs:
    """The inputs of the longest row of several tables, (1, tokens) each."""
    table = max(tables, key=lambda one: int(one.lengths.max()))
    return table.gather(torch.tensor([int(table.lengths.argmax())])).inputs


def fitting(task: TaskSection, model: PreTrainedModel, objective: Objective, row: Inputs) -> int:
    """How many tokens of a data set's rows the base takes, found by trying the longest one.

    Args:
        model: the base, on the CPU, where an index beyond a table is an error.
        objective: whose forward pass is tried.
        row: the inputs of the longest row, or of a prompt with its answer, (1, tokens) each.

    Raises:
        ScenarioError: if it takes fewer and the scenario says how many, or takes none.
    """
    width = row["input_ids"].shape[1]
    most = most_tokens(model, objective, row)
    if not most:
        reason = _fault(model, objective, _cut(row, 1))
        raise ScenarioError(f"task.base = {task.base!r}: no row goes through it: {reason}")
    if most < width and task.max_length is not None:
        raise too_long(task, most)
    return most


def most_tokens(model: PreTrainedModel, objective: Objective, row: Inputs) -> int:
    """The most tokens of a row that go through a model; arguments as for `fitting`.

    Returns:
        All of them where the row goes through; 0 where not even one does.
    """
    width = int(row["input_ids"].shape[1])
    if _fault(model, objective, row) is None:
        return width
    least, most = 0, width
    while most - least > 1:
        middle = (least + most) // 2
        passes = _fault(model, objective, _cut(row, middle)) is None
        least, most = (middle, most) if passes else (least, middle)
    return least


def _cut(row: Inputs, width: int) -> Inputs:
    """A row of so many tokens, its last one (a closing one, perhaps) among them."""
    return {name: torch.cat([t[:, : width - 1], t[:, -1:]], 1) for name, t in row.items()}


@torch.no_grad()
def _fault(model: PreTrainedModel, objective: Objective, row: Inputs) -> str | None:
    """Why a row does not go through a model, or None."""
    try:
        objective.logits(model, row)
    except Exception as error:  # whatever a base raises, the row does not go through
        return f"{type(error).__name__}: {first_line(error)}"
    return None
