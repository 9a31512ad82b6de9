"""Cells of the columns that a task uses, checked before anything is split or drawn.

Text must be text: binary is decoded, an absent cell is empty, all else is refused. A label is never
empty. A picture is bytes, `{bytes, path}`, or the name of a file beside the data.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from datasets.fingerprint import Hasher

from fedtune.errors import LONGEST, ScenarioError, quoted
from fedtune.scenario.task import TaskSection
from fedtune.tasks.files import Source

TEXT, PROMPT = "text", "text or whole numbers"


def text_columns(task: TaskSection) -> dict[str, str]:
    """The columns of a task's texts, each with the key that names it."""
    keys: list[str] = []
    if task.kind == "text-classification":
        keys = ["text", "text_pair"]
    elif task.kind == "causal-lm":
        keys = ["text"] if task.response is None else ["instruction", "response"]
    named = {column: key for key in keys if (column := getattr(task, key)) is not None}
    return {**dict.fromkeys(template_columns(task), "template"), **named}


def template_columns(task: TaskSection) -> list[str]:
    """The columns that `task.template` names; none where it cannot be read."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(task.template or "") if name]
    except ValueError:
        return []


def used_columns(task: TaskSection) -> list[str]:
    """The columns of a task's texts and labels."""
    label = [task.label] if task.kind.endswith("classification") else []
    return [*text_columns(task), *label]


def checked(task: TaskSection, source: Source) -> Dataset:
    """The rows with their texts, labels and pictures in the form that the task takes.

    Columns that are absent are left to others.

    Raises:
        ScenarioError: at the first cell that cannot be what the task takes it for.
    """
    rows = source.rows
    for column, key in text_columns(task).items():
        if column in rows.column_names:
            allowed = TEXT if key in ("text", "text_pair") else PROMPT
            rows = _texts(rows, column, _Place(f"task.{key}", column, source.where), allowed)
    if task.kind.endswith("classification") and task.label in rows.column_names:
        rows = _labels(rows, task.label, _Place("task.label", task.label, source.where))
    if task.kind == "image-classification" and task.image in rows.column_names:
        place = _Place("task.image", task.image, source.where)
        rows = _pictures(rows, task.image, place, source.folder)
    return rows


def blank_notes(task: TaskSection, rows: Dataset, split: str) -> list[str]:
    """Lines about rows of a split that hold no text where the task reads one.

    Raises:
        ScenarioError: where none of them holds one.
    """
    notes = []
    for column, key in text_columns(task).items():
        if column not in rows.column_names:
            continue
        values = rows.data.column(column)
        if not (_is_text(values.type) or pa.types.is_null(values.type)):
            continue
        texts = values.cast(pa.large_string()).fill_null("")
        blank = pc.sum(pc.equal(pc.utf8_trim_whitespace(texts), "")).as_py() or 0
        if key != "template" and rows.num_rows and blank == rows.num_rows:
            raise ScenarioError(f"task.{key} = {quoted(column)}: no row of {split} holds a text")
        if blank:
            notes.append(
                f"data: {blank} of {rows.num_rows} rows of {split} hold no text in {quoted(column)}"
            )
    return notes


class _Place:
    """Says of a cell where it is."""

    def __init__(self, key: str, column: str, where: Callable[[int], str]) -> None:
        self.head, self.where = f"{key} = {quoted(column)}", where

    def fault(self, reason: str, row: int | None = None) -> ScenarioError:
        """What is wrong with a row, or the column."""
        at = "" if row is None else f"{self.where(row)}: "
        return ScenarioError(f"{self.head}: {at}{reason}")


def _texts(rows: Dataset, column: str, place: _Place, allowed: str) -> Dataset:
    kind, names = rows.data.schema.field(column).type, _names(rows, column)
    if _is_binary(kind):
        return _as_text(rows, column, place, _utf8)
    if names:
        return _as_text(rows, column, place, lambda value: names[_index(value, len(names))])
    whole = allowed == PROMPT and pa.types.is_integer(kind)
    if not (_is_text(kind) or pa.types.is_null(kind) or whole):
        raise place.fault(f"holds {_told(rows, column)}; allowed: {allowed}")
    return rows


def _labels(rows: Dataset, column: str, place: _Place) -> Dataset:
    kind = rows.data.schema.field(column).type
    if _is_binary(kind):
        rows, kind = _as_text(rows, column, place, _utf8), pa.string()
    values = rows.data.column(column)
    empty = pc.is_null(values, nan_is_null=True)
    if _is_text(kind):
        empty = pc.or_(empty, pc.equal(pc.utf8_trim_whitespace(values.fill_null("")), ""))
    if (row := _first(empty)) is not None:
        raise place.fault("holds no label; give it one, or take the row out", row)
    plain = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    if not (_is_text(kind) or any(holds(kind) for holds in plain)):
        raise place.fault(f"holds {_told(rows, column)}; allowed: text, or whole numbers")
    if names := _names(rows, column):
        strange = pc.or_(pc.less(values, 0), pc.greater_equal(values, len(names)))
        if (row := _first(strange)) is not None:
            raise place.fault(f"holds {values[row]} for {len(names)} classes", row)
    return rows


def _pictures(rows: Dataset, column: str, place: _Place, folder: Path | None) -> Dataset:
    """The column as pictures, files by their whole names."""
    feature, kind = rows.features[column], rows.data.schema.field(column).type
    if not isinstance(feature, ImageFeature):
        held = pa.types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}
        if not (_is_binary(kind) or _is_text(kind) or held):
            raise place.fault(
                f"holds {_told(rows, column)}; allowed: pictures, bytes of them, {{bytes, path}}, "
                "names of files"
            )
        rows = rows.cast_column(column, ImageFeature())
    return rows if folder is None else _with_folder(rows, column, folder)


def _with_folder(rows: Dataset, column: str, folder: Path) -> Dataset:
    """Pictures that are no more than names of files, by names that hold from anywhere."""
    table = rows.data.column(column)
    held, paths = (
        pa.chunked_array([part.field(name) for part in table.chunks], kind)
        for name, kind in (("bytes", pa.binary()), ("path", pa.string()))
    )
    relative = pc.and_(pc.is_null(held), pc.invert(pc.starts_with(paths.fill_null("/"), "/")))
    if not pc.any(relative).as_py():
        return rows
    whole = pc.if_else(relative, pc.binary_join_element_wise(str(folder), paths, "/"), paths)
    parts = [column.combine_chunks() for column in (held, whole)]
    struct = pa.StructArray.from_arrays(parts, ["bytes", "path"])
    return _with_column(rows, column, pa.chunked_array([struct]), rows.features)


def _as_text(rows: Dataset, column: str, place: _Place, told: Callable[[Any], str]) -> Dataset:
    """A column as text, absent cells apart; `told` raises ValueError where a cell is none."""
    found: list[str | None] = []
    for row, value in enumerate(rows.data.column(column).to_pylist()):
        try:
            found.append(None if value is None else told(value))
        except ValueError as error:
            raise place.fault(str(error), row) from None
    features = rows.features.copy()
    features[column] = Value("string")
    return _with_column(rows, column, pa.chunked_array([found], pa.string()), features)


def _utf8(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError("holds bytes that are no UTF-8 text") from None


def _index(value: int, classes: int) -> int:
    if not 0 <= value < classes:
        raise ValueError(f"holds {value} for {classes} classes")
    return value


def _with_column(
    rows: Dataset, column: str, values: pa.ChunkedArray, features: Features
) -> Dataset:
    """The rows with other values in a column, which follow from them."""
    schema, place = features.arrow_schema, rows.column_names.index(column)
    table = rows.data.table.set_column(place, schema.field(column), values)
    fingerprint = Hasher.hash((rows._fingerprint, column, "as a task takes it"))
    return Dataset(table.replace_schema_metadata(schema.metadata), fingerprint=fingerprint)


def _first(mask: pa.ChunkedArray) -> int | None:
    place = pc.index(mask.fill_null(False), True).as_py()
    return None if place < 0 else int(place)


def _names(rows: Dataset, column: str) -> list[str] | None:
    feature = rows.features[column]
    return feature.names if isinstance(feature, ClassLabel) else None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _told(rows: Dataset, column: str) -> str:
    """What a column holds, by its type."""
    if isinstance(rows.features[column], ImageFeature):
        return "pictures"
    return str(rows.data.schema.field(column).type)[:LONGEST]
