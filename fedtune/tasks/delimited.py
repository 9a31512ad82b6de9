"""Rows of csv and tsv files, as text exactly as it is written.

In csv a field may stand in double quotes, and then hold delimiters, line breaks and doubled quotes;
in tsv a quote is a character like any other. Blank lines are no rows. A row whose number of fields
is not the header's is refused, since it could only be guessed which field belongs where.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from fedtune.errors import ScenarioError, quoted

FORMS: dict[str, dict[str, Any]] = {
    ".csv": {"delimiter": ",", "strict": True},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}
HINTS = {
    ".csv": "a comma within a field needs quotes around the field, one at the end makes a field",
    ".tsv": "every tab makes a field, one at the end too",
}
Record = tuple[int, list[str]]


def delimited(
    source: TextIO, name: str, form: str, columns: list[str] | None
) -> tuple[list[str], Iterator[Record]]:
    """The columns of a file, and its rows with the number of the line that each begins in.

    Args:
        source: the open file, its line ends as they are.
        name: of the file, for messages.
        form: `.csv` or `.tsv`.
        columns: their names where the file has no header.

    Raises:
        ScenarioError: for a header that names a column twice; while rows are read, for one with
            more or fewer fields, or quotes that do not fit.
    """
    found = _records(source, name, form)
    if columns is not None:
        return columns, _of_width(found, name, form, columns, "task.columns names")
    line, header = next(found, (1, []))
    header = [field or f"Unnamed: {place}" for place, field in enumerate(header)]
    if twice := [field for field, count in Counter(header).items() if count > 1]:
        raise ScenarioError(
            f"{name}, line {line}: two columns are called {quoted(twice[0])}; rename one, or give "
            "task.columns if the file has no header"
        )
    return header, _of_width(found, name, form, header, "the header has")


def _records(source: TextIO, name: str, form: str) -> Iterator[Record]:
    """Fields by row, but for blank lines."""
    reader = csv.reader(source, **FORMS[form])
    while True:
        line = reader.line_num + 1
        try:
            with _long_fields():
                fields = next(reader, None)
        except csv.Error as error:
            raise ScenarioError(f"{name}, line {line}: {_reason(error)}") from None
        if fields is None:
            return
        if fields and not (len(fields) == 1 and fields[0].isspace()):
            yield line, fields


def _of_width(
    records: Iterator[Record], name: str, form: str, columns: list[str], whose: str
) -> Iterator[Record]:
    for line, fields in records:
        if len(fields) != len(columns):
            count = f"{len(fields)} field{'s' if len(fields) != 1 else ''}"
            raise ScenarioError(
                f"{name}, line {line}: {count}, where {whose} {len(columns)}: {HINTS[form]}"
            )
        yield line, fields


def _reason(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "its quote is never closed"
    if "expected after" in str(error):
        return "a closing quote is followed by more text; a quote within a field is doubled"
    return str(error)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Without the limit of 131,072 characters a field, which holds for the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
