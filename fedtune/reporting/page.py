"""One self-contained HTML page of a record, and the same as Markdown."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from fedtune.files import plain
from fedtune.reporting import words
from fedtune.reporting.claim import claim_note, claim_table
from fedtune.reporting.figure import image_bytes
from fedtune.reporting.plots import styled
from fedtune.reporting.privacy import ledger_table
from fedtune.reporting.tables import (
    Entry,
    cost_table,
    difference_table,
    latex,
    markdown,
    result_table,
    tuning_table,
)

Record = Mapping[str, Any]
Pictures = Mapping[str, tuple[Figure, str]]


def html(record: Record, pictures: Pictures) -> str:
    """The page: works without a network, on a phone and printed.

    Args:
        record: of a comparison or a run.
        pictures: what `fedtune.reporting.plots.pictures` gives.
    """
    loader = jinja2.PackageLoader("fedtune", "reporting")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = json.dumps(plain(record), allow_nan=False).replace("<", "\\u003c")
    return environment.get_template("page.html").render(
        record=record,
        record_json=Markup(text),
        state=words.progress(record),
        setting=words.setting(record),
        left_out=words.left_out(record),
        in_short=words.in_short(record),
        statistics=words.statistics_note(record),
        glossary=words.glossary(record),
        results=result_table(record),
        costs=cost_table(record),
        differences=difference_table(record),
        claim=claim_table(record) if record["claim"] else None,
        claim_note=claim_note(record),
        ledger=ledger_table(record["privacy"]) if record["privacy"] else None,
        tuning=tuning_table(record),
        failed=failed(record),
        marks={family["label"]: style.colour for family, style in styled(record)},
        plots=[(name, _data_uri(figure), text) for name, (figure, text) in pictures.items()],
    )


def page_markdown(record: Record) -> str:
    """Tables and sentences, as they go into an issue or a paper's notes."""
    parts = [f"## {record['name']}", _plain(words.setting(record))]
    if state := words.progress(record):
        parts.append(f"*{state}*")
    parts += [_plain(sentence) for sentence in words.left_out(record)]
    parts += [
        "\n".join(f"- {_plain(s)}" for s in words.in_short(record)),
        markdown(result_table(record)),
    ]
    if record["claim"]:
        parts += [words.claim(record), markdown(claim_table(record)), claim_note(record)]
    if record["privacy"]:
        parts += [record["privacy"]["statement"], markdown(ledger_table(record["privacy"]))]
    if record["differences"]:
        parts += [markdown(difference_table(record)), _plain(words.statistics_note(record))]
    parts.append(markdown(cost_table(record)))
    if any(family["trials"] for family in record["families"]):
        parts += ["Search for settings:", markdown(tuning_table(record))]
    notes = [f"- not possible: {one['label']}: {one['reason']}" for one in record["skipped"]]
    notes += [f"- failed: {text}" for text in failed(record)]
    if notes:
        parts.append("\n".join(notes))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    parts.append(f"Made by `{record['command']}` ({versions}; on {record['device']}).")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def page_latex(record: Record) -> str:
    """The tables in LaTeX, for the booktabs package."""
    tables = [result_table(record), cost_table(record)]
    if record["differences"]:
        tables.insert(1, difference_table(record))
    if record["claim"]:
        tables.insert(1, claim_table(record))
    return "\n".join(map(latex, tables))


def failed(record: Record) -> list[str]:
    """Each run that failed and why, those of searches included."""
    found = []
    for family in record["families"]:
        for trial in family["trials"]:
            found += [
                f"{family['label']}, search, {trial['label']}: {p}" for p in trial["problems"]
            ]
        for cell in family["cells"]:
            if cell["status"] == "failed":
                found.append(f"{family['label']}, seed {cell['seed']}: {cell['problem']}")
    return found


def _plain(sentence: words.Sentence) -> str:
    return "".join(part.text if isinstance(part, Entry) else part for part in sentence)


def _data_uri(figure: Figure) -> str:
    encoded = base64.b64encode(image_bytes(figure, "svg")).decode("ascii")
    return f"data:image/svg+xml;base64,{encoded}"
