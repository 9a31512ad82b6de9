"""Rows of one file, kept in the cache of `datasets` under the digest of its content."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features
from datasets.table import table_cast

from fedtune.errors import LONGEST, ScenarioError, quoted
from fedtune.scenario.task import TaskSection
from fedtune.tasks.cache import folder_once
from fedtune.tasks.delimited import delimited
from fedtune.tasks.json_rows import json_rows, json_table
from fedtune.tasks.stamps import stamps

CACHE_VERSION = 2
FORMS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
PACKED = ".gz"
ALLOWED = f"{', '.join(FORMS)}, in small or capital letters; all but .parquet also with {PACKED}"
CHUNK, ROWS = 1024, "rows.arrow"


@dataclass(frozen=True)
class Source:
    """Rows as somebody wrote them.

    Attributes:
        rows: all of them, in their order.
        where: names a row by its number, as whoever looks for it finds it.
        folder: that names of pictures are relative to.
    """

    rows: Dataset
    where: Callable[[int], str]
    folder: Path | None = None


def form_of(path: Path) -> str | None:
    """Which of `FORMS` a file has by its name, packed or not; None if none."""
    name = path.name.lower()
    packed = name.endswith(PACKED)
    form = Path(name.removesuffix(PACKED)).suffix
    return form if form in FORMS and not (packed and form == ".parquet") else None


def _is_packed(path: Path) -> bool:
    return path.name.lower().endswith(PACKED)


def stem_of(path: Path) -> str:
    """A file's name without what says its form."""
    return Path(path.name[: -len(PACKED)] if _is_packed(path) else path.name).stem


def read_file(task: TaskSection, path: Path, used: Collection[str]) -> Source:
    """The rows of a file.

    Args:
        task: says how csv, tsv and txt files are read.
        path: of the file.
        used: the columns of texts and labels that the task uses.

    Raises:
        ScenarioError: if it is of no known form, or does not hold what its form says.
    """
    form = form_of(path)
    if not path.is_file() or form is None:
        raise ScenarioError(
            f"task.data: {str(path)!r} is no file that can be read; allowed: {ALLOWED}"
        )
    how = {".txt": task.pattern, ".csv": task.columns, ".tsv": task.columns}.get(form)
    by = sorted(used) if form in (".json", ".jsonl") else None
    key = CACHE_VERSION, form, _is_packed(path), stamps([path]), how, by

    def make(made: Path, beside: Path) -> None:
        try:
            _write(made / ROWS, *_tables(task, path, form, used))
        except UnicodeDecodeError:
            raise ScenarioError(f"{path.name}: is not UTF-8; save it as UTF-8") from None

    folder = folder_once("rows", key, make)
    rows = Dataset.from_file(str(folder / ROWS))
    rows._fingerprint = folder.name
    return Source(rows, lambda row: _where(task, path, form, row), path.parent)


def _tables(
    task: TaskSection, path: Path, form: str, used: Collection[str]
) -> tuple[pa.Schema, Iterator[pa.Table]]:
    if form == ".parquet":
        return _parquet(path)
    if form == ".txt":
        return _text(task, path)
    if form in (".csv", ".tsv"):
        return _delimited(task, path, form)
    with opened(path) as source:
        table = json_table(source, path.name, used)
    return table.schema, iter([table])


def opened(path: Path, newline: str | None = "") -> TextIO:
    """A text file, unpacked if it is packed; its line ends as they are, or for None as `\\n`."""
    if _is_packed(path):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


def _delimited(task: TaskSection, path: Path, form: str) -> tuple[pa.Schema, Iterator[pa.Table]]:
    source = opened(path)
    columns, records = delimited(source, path.name, form, task.columns)
    schema = pa.schema([(column, pa.string()) for column in columns])

    def rows() -> Iterator[list[str]]:
        with source:
            yield from (fields for _, fields in records)

    return schema, _chunks(schema, rows())


def _chunks(schema: pa.Schema, rows: Iterator[list[str]]) -> Iterator[pa.Table]:
    """Rows of text as tables."""
    while chunk := list(islice(rows, CHUNK)):
        yield pa.table([pa.array(c, pa.string()) for c in zip(*chunk, strict=True)], schema=schema)


def _text(task: TaskSection, path: Path) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """The rows of a txt file: its matches of `task.pattern`, else its lines that are not blank."""
    pattern = None if task.pattern is None else _pattern(task.pattern)
    names = ["text"] if pattern is None else list(pattern.groupindex)
    schema = pa.schema([(name, pa.string()) for name in names])

    def rows() -> Iterator[list[str]]:
        with opened(path, newline=None) as source:
            if pattern is None:
                yield from ([line.removesuffix("\n")] for line in source if line.strip())
            else:
                for match in pattern.finditer(source.read()):
                    yield [match[name] or "" for name in names]

    return schema, _chunks(schema, rows())


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ScenarioError(f"task.pattern = {text!r}: {error}") from None
    if not pattern.groupindex:
        raise ScenarioError(f"task.pattern = {text!r}: needs named groups, (?P<text>...)")
    return pattern


def _parquet(path: Path) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """The rows of a Parquet file with the features that it names; categories as their values."""
    file = pq.ParquetFile(path)
    fields = [field.with_type(_plain(field.type)) for field in file.schema_arrow]
    plain = pa.schema(fields, file.schema_arrow.metadata)
    schema = pa.schema([_known(field, path) for field in plain], plain.metadata)
    schema = Features.from_arrow_schema(schema).arrow_schema

    def tables() -> Iterator[pa.Table]:
        for batch in file.iter_batches(CHUNK):
            yield table_cast(pa.Table.from_batches([batch]).cast(plain), schema)

    return schema, tables()


def _known(field: pa.Field, path: Path) -> pa.Field:
    """A field of a type that `datasets` can hold."""
    try:
        Features.from_arrow_schema(pa.schema([field]))
    except (ValueError, TypeError, NotImplementedError, pa.ArrowException):
        raise ScenarioError(
            f"{path.name}: column {quoted(field.name)} holds {str(field.type)[:LONGEST]}, which "
            "cannot be read; take it out, or save it as text"
        ) from None
    return field


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, however its file lays them out."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _write(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _where(task: TaskSection, path: Path, form: str, row: int) -> str:
    """The line of a row, where its file has lines; else its number, from 0."""
    place: Any = f"row {row}"
    if form in (".csv", ".tsv"):
        with opened(path) as source:
            records = delimited(source, path.name, form, task.columns)[1]
            place = f"line {next(islice(records, row, None))[0]}"
    elif form in (".json", ".jsonl"):
        with opened(path) as source:
            place = next(islice(json_rows(source, path.name), row, None))[0]
    return f"{path.name}, {place}"
