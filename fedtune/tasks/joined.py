"""Rows of several files, one after another; each file's cells are checked by themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets
from datasets.fingerprint import Hasher

from fedtune.errors import ScenarioError, listed, quoted
from fedtune.scenario.task import TaskSection
from fedtune.tasks.cells import checked, used_columns
from fedtune.tasks.files import Source, read_file

Named = tuple[str, Dataset]


def read_files(task: TaskSection, files: Sequence[Path], used: Collection[str]) -> Source:
    """The rows of several files; names of pictures are relative to the file that names them.

    Classes meet by their names; numbers of several widths, and numbers beside text, by what they
    are as text.

    Raises:
        ScenarioError: for a column that the task uses and a file has not, and one that holds in two
            files what cannot meet.
    """
    sources = [read_file(task, file, used) for file in files]
    return joined(task, [file.name for file in files], sources)


def joined(task: TaskSection, names: Sequence[str], sources: Sequence[Source]) -> Source:
    """Sources, one after another; arguments and faults as `read_files`."""
    if len(sources) == 1:
        return sources[0]
    parts = [checked(task, source) for source in sources]
    named = [(name, rows) for name, rows in zip(names, parts, strict=True) if len(rows)]
    _check_columns(task, list(zip(names, parts, strict=True)))
    ends = list(accumulate(map(len, parts)))

    def where(row: int) -> str:
        which = int(np.searchsorted(ends, row, side="right"))
        return sources[which].where(row - ends[which] + len(parts[which]))

    return Source(concatenate_datasets(_aligned(named)) if named else parts[0], where)


def _check_columns(task: TaskSection, parts: Sequence[Named]) -> None:
    pictures = [task.image] if task.kind == "image-classification" else []
    for column in (*used_columns(task), *pictures):
        having = [name for name, rows in parts if column in rows.column_names]
        for name, rows in parts:
            if having and name not in having:
                found = listed(rows.column_names) or "none"
                raise ScenarioError(
                    f"{name}: has no column {quoted(column)}, as {having[0]} has; it has: {found}"
                )


def _aligned(parts: Sequence[Named]) -> list[Dataset]:
    """The rows with the same columns of the same types; what a file has not is null."""
    if len({str(rows.features) for _, rows in parts}) == 1:
        return [rows for _, rows in parts]
    columns = dict.fromkeys(column for _, rows in parts for column in rows.column_names)
    features = Features({column: _feature(column, parts) for column in columns})
    return [_cast(rows, features) for _, rows in parts]


def _feature(column: str, parts: Sequence[Named]) -> object:
    """What a column can be in all files."""
    having = [(name, rows) for name, rows in parts if column in rows.column_names]
    features = [rows.features[column] for _, rows in having]
    types = [rows.data.schema.field(column).type for _, rows in having]
    if all(feature == features[0] for feature in features):
        return features[0]
    lists = [isinstance(feature, ClassLabel) for feature in features]
    if all(is_list or _is_text(kind) for is_list, kind in zip(lists, types, strict=True)):
        return Value("string")
    if not any(lists):
        if all(_is_text(kind) or pa.types.is_integer(kind) for kind in types) and any(
            map(_is_text, types)
        ):
            return Value("string")
        try:
            fields = [pa.schema([(column, kind)]) for kind in types]
            whole = pa.unify_schemas(fields, promote_options="permissive")
            return Features.from_arrow_schema(whole)[column]
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            pass
    other = next(place for place, feature in enumerate(features) if feature != features[0])
    told = ["classes by number" if lists[i] else str(types[i]) for i in (0, other)]
    raise ScenarioError(
        f"column {quoted(column)}: {having[0][0]} holds {told[0]}, {having[other][0]} {told[1]}; "
        "write both alike"
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    )


def _cast(rows: Dataset, features: Features) -> Dataset:
    schema, columns = features.arrow_schema, []
    for field in schema:
        if field.name not in rows.column_names:
            columns.append(pa.chunked_array([pa.nulls(len(rows), field.type)]))
            continue
        values, feature = rows.data.column(field.name), rows.features[field.name]
        if isinstance(feature, ClassLabel) and feature != features[field.name]:
            values = pa.chunked_array([[_name(feature, value) for value in values.to_pylist()]])
        columns.append(values.cast(field.type))
    fingerprint = Hasher.hash((rows._fingerprint, str(features)))
    return Dataset(pa.Table.from_arrays(columns, schema=schema), fingerprint=fingerprint)


def _name(feature: ClassLabel, value: int | None) -> str | None:
    return None if value is None else str(feature.int2str(value))
