"""A record as tables: Markdown for a paper or an issue, LaTeX, and a row a cell as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from fedtune.reporting.measures import (
    COSTS,
    MEASURES,
    RESULTS,
    WEIGHTS,
    Measure,
    difference_unit,
    p_written,
    written,
)

Record = Mapping[str, Any]
DIFFERENCES = (
    "",
    "seeds",
    "difference",
    "95 % interval",
    "p",
    "p (Holm)",
    "p (rank)",
    "detectable",
    "verdict",
)

LATEX = {
    **{letter: f"\\{letter}" for letter in "%_&#$\u007b\u007d"},
    "±": r"$\pm$", "ε": r"$\varepsilon$", "–": "--", "<": "$<$", ">": "$>$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One field of a table.

    Attributes:
        text: as it is read.
        source: where the numbers come from in comparison.json, e.g.
            `families.0.measures.final.mean`; empty for words.
    """

    text: str
    source: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a heading for each column, the first of which names the rows."""

    headings: list[str]
    rows: list[list[Entry]]


def result_table(record: Record) -> Table:
    """What each family reached, and how much each of its clients counts."""
    found = _table(record, RESULTS)
    weights = [family.get("weights") for family in record["families"]]
    if not any(weights):
        return found
    rows = [[*row, Entry(w or "–")] for row, w in zip(found.rows, weights, strict=True)]
    return Table([*found.headings, WEIGHTS], rows)


def cost_table(record: Record) -> Table:
    """What it cost."""
    return _table(record, COSTS)


def difference_table(record: Record) -> Table:
    """Each family against the reference."""
    metric = record["metric"]
    unit = difference_unit(metric)
    headings = [f"against {record['reference']}", *DIFFERENCES[1:]]
    rows = []
    for index, found in enumerate(record["differences"]):
        at, by = f"differences.{index}", found["difference"]

        def show(value: float | None, signed: bool = True) -> str:
            text = written(value, "metric", metric, signed)
            return f"{text} {unit}".strip() if text != "–" else text

        low, high = (written(by[end], "metric", metric, True) for end in ("low", "high"))
        interval = "–" if by["low"] is None else f"{low} to {high}"
        smallest = written(found["detectable"], "metric", metric, True).lstrip("+")
        rows.append(
            [
                Entry(found["label"]),
                Entry(str(by["n"]), f"{at}.difference.n"),
                Entry(show(by["mean"]), f"{at}.difference.mean"),
                Entry(interval, f"{at}.difference.low"),
                Entry(p_written(found["p"]), f"{at}.p"),
                Entry(p_written(found["p_holm"]), f"{at}.p_holm"),
                Entry(p_written(found["rank_p"]), f"{at}.rank_p"),
                Entry(
                    f"{smallest} {unit}".strip() if smallest != "–" else smallest,
                    f"{at}.detectable",
                ),
                Entry(found["verdict"]),
            ]
        )
    if all(found["rank_p"] is None for found in record["differences"]):
        place = DIFFERENCES.index("p (rank)")
        headings.pop(place)
        for row in rows:
            row.pop(place)
    return Table(headings, rows)


def tuning_table(record: Record) -> Table:
    """What the search of each family found on validation data."""
    metric, rows = record["metric"], []
    for i, family in enumerate(record["families"]):
        for j, trial in enumerate(family["trials"]):
            chosen = trial["values"] == family["chosen"]
            edge = "at the edge of the grid" if chosen and family["at_edge"] else ""
            score = Entry(
                written(trial["score"], "metric", metric), f"families.{i}.trials.{j}.score"
            )
            rows.append(
                [Entry(family["label"]), Entry(trial["label"]), score,
                 Entry("chosen" if chosen else ""), Entry(edge)]
            )  # fmt: skip
    return Table(["", "tried", f"validation {metric}", "", ""], rows)


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown."""
    lines = [table.headings, ["---", *["---:"] * (len(table.headings) - 1)]]
    lines += [[entry.text for entry in row] for row in table.rows]
    return "".join(
        "| " + " | ".join(text.replace("|", "\\|") for text in line) + " |\n" for line in lines
    )


def plain_text(table: Table) -> str:
    """A table in aligned columns, for a terminal."""
    lines = [table.headings, *([entry.text for entry in row] for row in table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.headings))]
    return "\n".join(
        "  ".join(
            t.ljust(w) if i == 0 else t.rjust(w)
            for i, (t, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def latex(table: Table) -> str:
    """A table in LaTeX, for the booktabs package."""
    columns = "l" + "r" * (len(table.headings) - 1)
    lines = [table.headings, *([entry.text for entry in row] for row in table.rows)]
    rows = [" & ".join(map(_latex, line)) + r" \\" for line in lines]
    body = "\n".join([r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"])
    return f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"


def cells_csv(record: Record) -> str:
    """A row a cell, with every measure unrounded."""
    axes = list(record["axes"])
    buffer = StringIO()
    columns = ["family", *axes, "seed", "status", *(column.key for column in MEASURES)]
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for family in record["families"]:
        for cell in family["cells"]:
            row = {"family": family["label"], "seed": cell["seed"], "status": cell["status"]}
            writer.writerow({**family["over"], **row, **cell["measures"]})
    return buffer.getvalue()


def _table(record: Record, columns: Sequence[Measure]) -> Table:
    families, metric = record["families"], record["metric"]
    shown = [c for c in columns if any(family["measures"][c.key] for family in families)]
    headings = ["", *(column.title.format(metric=metric) for column in shown)]
    rows = []
    for index, family in enumerate(families):
        row = [Entry(family["label"])]
        for column in shown:
            found = family["measures"][column.key]
            row.append(
                Entry(
                    _spread(found, column, family, metric),
                    f"families.{index}.measures.{column.key}",
                )
            )
        rows.append(row)
    return Table(headings, rows)


def _spread(found: Record | None, column: Measure, family: Record, metric: str) -> str:
    """Mean, and where seeds differ the standard deviation; how many of the seeds, if not all."""
    if found is None:
        return "never" if column.key.endswith("to_target") else "–"
    text = written(found["mean"], column.unit, metric)
    if found["sd"] and found["sd"] > 1e-9 * abs(found["mean"]):
        spread = written(found["sd"], column.unit, metric)
        text = f"{text.rsplit(' ', 1)[0]} ± {spread}" if " " in text else f"{text} ± {spread}"
    wanted = len(family["cells"])
    return text if found["n"] == wanted else f"{text} ({found['n']} of {wanted})"


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)
