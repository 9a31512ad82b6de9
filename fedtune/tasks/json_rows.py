"""Rows of JSON files: an object a line, a list of objects, or pandas' object of columns."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any, TextIO

import pyarrow as pa

from fedtune.errors import ScenarioError, quoted

CHUNK = 4096
KINDS = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list",
         dict: "an object"}  # fmt: skip
NESTED = {"a list", "an object"}
PANDAS = ({"columns", "index", "data"}, {"schema", "data"})  # orient="split", orient="table"
HELP = (
    "write an object a line, or a list of objects (pandas: to_json(..., orient='records', "
    "lines=True))"
)
Row = dict[str, Any]


def json_table(source: TextIO, name: str, used: Collection[str]) -> pa.Table:
    """The rows of a file as a table, values as they are written: a date is text.

    A column whose values are of several kinds holds them as JSON text, if the task does not use it.

    Args:
        source: the open file.
        name: of the file, for messages.
        used: the columns of texts and labels that the task uses.

    Raises:
        ScenarioError: for what is no such file, with its line; for a list, an object or values of
            several kinds in a column that is used, and a row without one that others have.
    """
    columns = _Columns(name, used)
    for place, row in json_rows(source, name):
        columns.add(place, row)
    return columns.table()


def json_rows(source: TextIO, name: str) -> Iterator[tuple[str, Row]]:
    """Each row with where it stands in the file: a line, or a place in a list."""
    first, line = _first(source)
    try:
        value = json.loads(first)
    except ValueError:  # perhaps one value over several lines
        yield from _listed(_parsed(first + source.read(), name, line), name)
        return
    if isinstance(value, list):
        _check_end(source, name, line)
        yield from _listed(value, name)
        return
    row, following = _object(value, f"{name}, line {line}"), _lines(source, name, line)
    after = next(following, None)
    if after is None and (_is_table(row) or row.keys() in PANDAS):
        yield from _listed(row, name)
        return
    yield f"line {line}", row
    if after is not None:
        yield after
    yield from following


def _first(source: TextIO) -> tuple[str, int]:
    """The first line that is not blank, and its number."""
    for number, text in enumerate(source, 1):
        if text.strip():
            return text, number
    return "[]", 1


def _check_end(source: TextIO, name: str, line: int) -> None:
    """Refuse text after a list that a line holds."""
    for number, text in enumerate(source, line + 1):
        if text.strip():
            raise ScenarioError(
                f"{name}, line {number}: more text after the list that line {line} holds; {HELP}"
            )


def _lines(source: TextIO, name: str, before: int) -> Iterator[tuple[str, Row]]:
    for number, text in enumerate(source, before + 1):
        if text.strip():
            place = f"line {number}"
            yield place, _object(_parsed(text, name, number), f"{name}, {place}")


def _parsed(text: str, name: str, line: int) -> Any:
    """The value of a text that begins in a line."""
    try:
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        where = f"{name}, line {line + error.lineno - 1}"
        raise ScenarioError(f"{where}: cannot be read ({error.msg}); {HELP}") from None


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise ScenarioError(f"{where}: holds {kind(value)}, not an object; {HELP}")
    return value


def _listed(value: Any, name: str) -> Iterator[tuple[str, Row]]:
    """The rows of a file that is one value: numbered from 0."""
    if isinstance(value, dict):
        value = _of_columns(value, name)
    for number, row in enumerate(value if isinstance(value, list) else [value]):
        place = f"row {number}"
        yield place, {"text": row} if isinstance(row, str) else _object(row, f"{name}, {place}")


def _is_table(value: Row) -> bool:
    """Whether an object holds columns or rows, and is not itself a row."""
    members = list(value.values())
    return bool(members) and (_all(dict, members) or _all(list, members))


def _all(kind: type, values: Iterable[Any]) -> bool:
    return all(isinstance(value, kind) for value in values)


def _of_columns(value: Row, name: str) -> list[Any]:
    """The rows of an object of columns, of rows by their number, or of one list of rows."""
    columns = dict(value)
    members = list(columns.values())
    if value.keys() in PANDAS:
        raise ScenarioError(f"{name}: is what pandas writes with orient='split' or 'table'; {HELP}")
    if (
        len(members) == 1
        and isinstance(members[0], list)
        and all(isinstance(m, dict) for m in members[0])
    ):
        return members[0]
    if members and _all(dict, members):
        inner = list(next(iter(columns.values())))
        if all(map(_is_number, columns)) and not all(map(_is_number, inner)):
            return list(columns.values())
        if any(list(member) != inner for member in columns.values()):
            raise ScenarioError(f"{name}: its columns do not hold the same rows; {HELP}")
        columns = {column: list(member.values()) for column, member in columns.items()}
    if (
        not (columns and _all(list, columns.values()))
        or len({len(member) for member in columns.values()}) > 1
    ):
        raise ScenarioError(f"{name}: is one object that holds no columns; {HELP}")
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _is_number(key: str) -> bool:
    return key.lstrip("-").isdecimal()


def kind(value: Any) -> str:
    """What a value of JSON is, in words."""
    return KINDS.get(type(value), "null")


class _Columns:
    """Rows as chunks of Arrow tables, and what kinds of values each column has held."""

    def __init__(self, name: str, used: Collection[str]) -> None:
        self.name, self.used = name, used
        self.kinds: dict[str, dict[str, str]] = {}
        self.without: dict[str, str] = {}
        self.rows: list[Row] = []
        self.chunks: list[pa.Table] = []

    def add(self, place: str, row: Row) -> None:
        """Add a row."""
        for column, value in row.items():
            kinds = self.kinds.setdefault(column, {})
            if value is not None and kinds.setdefault(kind(value), place) == place:
                self._check(column, kinds)
        for column in self.used:
            if column not in row:
                self.without.setdefault(column, place)
        self.rows.append(row)
        if len(self.rows) == CHUNK:
            self._flush()

    def table(self) -> pa.Table:
        """All rows; a column that the task does not use may miss in one, and is null there."""
        for column in self.used:
            if column in self.kinds and column in self.without:
                raise ScenarioError(
                    f"{self.name}, {self.without[column]}: has no {quoted(column)}, as other rows "
                    "have; give it one, null if it is empty, or take the row out"
                )
        if self.rows or not self.chunks:
            self._flush()
        mixed = {column for column in self.kinds if not self._fits(column)}
        chunks = [_as_text(chunk, mixed) for chunk in self.chunks]
        return pa.concat_tables(chunks, promote_options="permissive")

    def _fits(self, column: str) -> bool:
        """Whether the values of a column are of one kind, and of one type in all chunks."""
        fields = [
            chunk.schema.field(column) for chunk in self.chunks if column in chunk.schema.names
        ]
        try:
            pa.unify_schemas([pa.schema([field]) for field in fields], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return False
        return len(self.kinds[column]) < 2

    def _check(self, column: str, kinds: dict[str, str]) -> None:
        told = " and ".join(f"{what} in {place}" for what, place in kinds.items())
        if column in self.used and (len(kinds) > 1 or kinds.keys() & NESTED):
            raise ScenarioError(
                f"{self.name}: column {quoted(column)} holds {told}; allowed: text, or numbers"
            )

    def _flush(self) -> None:
        rows, self.rows = self.rows, []
        made = {column: _array([row.get(column) for row in rows]) for column in self.kinds}
        self.chunks.append(pa.table(made))


def _array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array(list(map(_encoded, values)), pa.string())


def _as_text(chunk: pa.Table, columns: Collection[str]) -> pa.Table:
    for place, column in enumerate(chunk.column_names):
        if column in columns and not pa.types.is_string(chunk.schema.types[place]):
            values = list(map(_encoded, chunk.column(place).to_pylist()))
            chunk = chunk.set_column(place, column, pa.array(values, pa.string()))
    return chunk


def _encoded(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
