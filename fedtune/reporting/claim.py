"""The verdict on a claim as a table and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedtune.reporting.measures import MEASURES, Unit, difference_unit, p_written, written
from fedtune.reporting.tables import Entry, Table

Record = Mapping[str, Any]
REPORTED = "rule."
UNITS: dict[str, Unit] = {column.key: column.unit for column in MEASURES}
HEADINGS = [
    "to be shown", "verdict", "left", "right", "difference", "95 % interval", "p (Holm)",
    "detectable",
]  # fmt: skip


def unit_of(measure: str) -> Unit:
    """Of a measure of the tables, or of `rule.NAME`: what rule and strategy report of a round."""
    return "number" if measure.startswith(REPORTED) else UNITS[measure]


def claimed_reports(record: Record) -> list[str]:
    """What of the rounds' reports a claim is about, by name."""
    measures = [part["measure"] for part in record["claim"]["parts"]] if record["claim"] else []
    names = [one.removeprefix(REPORTED) for one in measures if one.startswith(REPORTED)]
    return list(dict.fromkeys(names))


def claim_table(record: Record) -> Table:
    """A row a part: both sides' means over seeds, their difference or ratio, and the verdict."""
    return Table(HEADINGS, [_row(record, index) for index in range(len(record["claim"]["parts"]))])


def claim_note(record: Record) -> str:
    """How the parts were decided."""
    return (
        "Left and right: means over seeds of what each part compares. better: a two-sided paired t "
        "test; no-worse: a one-sided one against the margin; p corrected for the parts (Holm); "
        f"shown below {record['level']:.0%}. ratio: left over right within its bounds under every "
        "seed; it shows nothing beside tests. Detectable: the smallest difference that would be "
        "found with a chance of 80 %; of no-worse the margin, if both sides were equal."
    )


def _row(record: Record, index: int) -> list[Entry]:
    part = record["claim"]["parts"][index]
    at, metric = f"claim.parts.{index}", record["metric"]
    unit = unit_of(part["measure"])
    points = difference_unit(metric) if unit == "metric" else ""

    def show(value: float | None, signed: bool = False) -> str:
        text = written(value, unit, metric, signed)
        return f"{text} {points}".strip() if signed and text != "–" else text

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    sides = [
        Entry(show(mean(part["values"][name])), f"{at}.values.{name}") for name in ("left", "right")
    ]
    if part["test"] == "ratio":
        low, high = part["between"]
        times = f"× {part['ratio']['mean']:.3g}" if part["ratio"] else "–"
        found = Entry(times, f"{at}.ratio.mean")
        rest = [Entry(f"wanted: {low:g} to {high:g}"), Entry("–"), Entry("–")]
    else:
        spread = part["difference"]
        ends = [written(spread[end], unit, metric, True) for end in ("low", "high")]
        found = Entry(show(spread["mean"], True), f"{at}.difference.mean")
        smallest = show(part["detectable"], True).lstrip("+")
        rest = [
            Entry("–" if spread["low"] is None else " to ".join(ends), f"{at}.difference.low"),
            Entry(p_written(part["p_holm"]), f"{at}.p_holm"),
            Entry(smallest, f"{at}.detectable"),
        ]
    return [Entry(part["says"]), Entry(part["verdict"]), *sides, found, *rest]
