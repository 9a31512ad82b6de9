"""The standing comparison of all strategies: trains what is new, refreshes the README.

.venv/bin/python scripts/which_strategy.py        # minutes on 2 CPU cores the first time
"""

from __future__ import annotations

import shutil
from pathlib import Path

import fedtune
from fedtune.comparison.progress import ConsoleGrid
from fedtune.reporting.measures import written
from fedtune.reporting.tables import Entry, Table, difference_table, markdown, result_table
from fedtune.reporting.words import weights_note

ROOT = Path(__file__).parent.parent
SHOWN = ROOT / "docs" / "which-strategy"
PICTURES = ("curves.png", "upload.png")
MARKS = ("<!-- which-strategy -->", "<!-- end -->")


def table(record: dict) -> str:
    """Final metric, difference to the reference, weights, upload and worst client of each."""
    results, differences = result_table(record), difference_table(record)
    verdicts = {
        row[0].text: dict(zip(differences.headings, (e.text for e in row), strict=True))
        for row in differences.rows
    }
    rows = []
    for family, row in zip(record["families"], results.rows, strict=True):
        sent, tenth = (family["measures"][k]["mean"] for k in ("bytes_up", "p10_client"))
        against = verdicts.get(family["label"])
        rows.append(
            [
                Entry(f"`{family['label']}`"),
                row[1],
                Entry(f"{against['difference']} ({against['95 % interval']})" if against else "–"),
                Entry(against["verdict"] if against else "reference"),
                Entry(family["weights"]),
                Entry(written(sent, "bytes", "")),
                Entry(written(tenth, "metric", record["metric"])),
            ]
        )
    headings = ["strategy", "final accuracy", f"to {record['reference']} (95 % interval)", "",
                "weights", "sent by all clients", "10th percentile client"]  # fmt: skip
    return markdown(Table(headings, rows))


def main() -> None:
    grid = ConsoleGrid()
    try:
        done = fedtune.compare("which-strategy", observer=grid)
    finally:
        grid.close()
    SHOWN.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        shutil.copy(done.path / "plots" / name, SHOWN / name)
    shutil.copy(done.path / "comparison.md", SHOWN / "README.md")
    page = ROOT / "README.md"
    before, _, rest = page.read_text("utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    note = "".join(weights_note(done.record)).strip()
    text = f"{before}{MARKS[0]}\n{table(done.record)}\n{note}\n{MARKS[1]}{after}"
    page.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
