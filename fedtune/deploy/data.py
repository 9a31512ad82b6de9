"""A client's own file against the task, in words that quote none of its values."""

from __future__ import annotations

import logging

from datasets import Dataset

from fedtune.errors import ScenarioError, quoted
from fedtune.scenario.task import TaskSection
from fedtune.tasks.labels import label_names
from fedtune.tasks.sources import load_splits

LOGGER = logging.getLogger("fedtune.trainer")
NEEDED = {
    "image-classification": ("image", "label"),
    "text-classification": ("text", "text_pair", "label"),
    "causal-lm": ("text", "instruction", "response"),
}


def data_fault(task: TaskSection) -> str | None:
    """Why a client's data do not fit the task, or None; in words that count nothing either."""
    try:
        rows = load_splits(task, (), {})[0]["train"]
    except ScenarioError as error:
        LOGGER.warning("%s", error)
        return "its data cannot be read, or are empty; its own log says more"
    keys = [key for key in NEEDED[task.kind] if getattr(task, key) is not None]
    if task.response is not None:
        keys.remove("text")
    for key in keys:
        if getattr(task, key) not in rows.column_names:
            return f"its data have no column {getattr(task, key)!r} (task.{key})"
    return None if task.kind == "causal-lm" else _label_fault(task, rows)


def _label_fault(task: TaskSection, rows: Dataset) -> str | None:
    if task.labels is None:
        return "task.labels is not given, so that classes have no common order"
    values = label_names(task, rows)
    if task.label_separator is not None:
        values = [value for value in values if task.label_separator not in value]
    strange = [value for value in values if value not in task.labels]
    if strange:
        LOGGER.warning(
            "%d labels are not in task.labels, e.g. %s", len(strange), quoted(strange[0])
        )
        return "its rows have a label that task.labels does not name"
    return None if values else "its data have no row with one label"
