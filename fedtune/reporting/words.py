"""A record in sentences: what was compared, what came out, how sure it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedtune.reporting.measures import (
    MEASURES,
    WEIGHTS,
    WEIGHTS_MEANING,
    difference_unit,
    p_written,
    written,
)
from fedtune.reporting.tables import Entry

Record = Mapping[str, Any]
Sentence = list[str | Entry]
DEALING = ("clients.", "task.", "local.batch_size", "local.epochs", "local.steps", "local.group")
COUNT = {
    "reported": "by their numbers of examples",
    "capped": "by their numbers of examples up to a cap",
    "uniform": "alike",
    "importance": "over the probability to take part, alike on average",
}
TASKS = {
    "image-classification": "images are classified",
    "text-classification": "texts are classified",
    "causal-lm": "a language model is trained",
    "least-squares": "a linear system is solved",
}


def progress(record: Record) -> str:
    """How far it has come, while it is not finished; else empty."""
    cells = [cell for family in record["families"] for cell in family["cells"]]
    if record["kind"] == "run":
        done, rounds = cells[0]["rounds_done"], cells[0]["rounds"]
        return "" if cells[0]["status"] == "done" else f"not finished: {done} of {rounds} rounds"
    done = sum(cell["status"] == "done" for cell in cells)
    if not cells:
        return "not finished: the search for settings goes on"
    return "" if done == len(cells) else f"not finished: {done} of {len(cells)} runs"


def setting(record: Record) -> Sentence:
    """What was done, for somebody who was not there."""
    task = record["task"]
    what = f"{TASKS[task['kind']]} on {task['data']} with {task['base']}"
    who = Entry(f"{record['clients']:,}", "clients")
    if record["kind"] == "run":
        return [f"One run: {what}, by a federation of ", who, " clients."]
    count = len(record["families"])
    over = ", ".join(record["axes"])
    head = ("One variant" if count == 1 else f"{count} variants") + (f" ({over})" if over else "")
    own = [key for key in (*record["axes"], *record["tune"]) if key.startswith(DEALING)]
    but = f", but for what {', '.join(own)} changes" if own else ""
    return [
        f"{head}: {what}, by a federation of ",
        who,
        " clients. Each was trained under ",
        Entry(str(record["seeds"]), "seeds"),
        f" seed{'s' if record['seeds'] > 1 else ''}; within a seed all have the same partition, "
        f"the same sampled clients and the same batches{but}.",
        *_tuned(record),
        *_budget(record),
        *weights_note(record),
    ]


def left_out(record: Record) -> list[Sentence]:
    """What was left out of the data, each thing once, with the runs that say so."""
    found: dict[tuple[str, int], str] = {}
    for i, family in enumerate(record["families"]):
        for j, cell in enumerate(family["cells"]):
            for what, count in cell["left_out"].items():
                found.setdefault((what, count), f"families.{i}.cells.{j}.left_out.{what}")
    return [
        ["Of the data, ", Entry(f"{count:,}", source), f" {what}."]
        for (what, count), source in found.items()
    ]


def claim(record: Record) -> str:
    """The claim and its verdict."""
    found = record["claim"]
    return f"Claim ({found['paper']}): {found['says']} Verdict: {found['verdict']}."


def in_short(record: Record) -> list[Sentence]:
    """The result in a few sentences."""
    known = [(i, f) for i, f in enumerate(record["families"]) if f["measures"]["final"]]
    sentences: list[Sentence] = [*_diverged(record)]
    sound = [(i, f) for i, f in known if not f["diverged"]]
    if not known:
        return sentences or [["Nothing is finished yet."]]
    if record["kind"] == "run" or len(known) == 1:
        index, family = known[0]
        return [[f"{family['label']} reaches ", _final(record, index), "."], *sentences]
    if sound:
        sentences.insert(0, _leader(record, sound))
    return [*sentences, *_verdicts(record)]


def _leader(record: Record, families: Sequence[tuple[int, Record]]) -> Sentence:
    pick = min if record["lower_is_better"] else max
    means = {index: family["measures"]["final"]["mean"] for index, family in families}
    best = [index for index, mean in means.items() if mean == pick(means.values())]
    word = "Lowest" if record["lower_is_better"] else "Highest"
    names = " and ".join(record["families"][index]["label"] for index in best)
    return [f"{word} on average: {names} with ", _final(record, best[0]), "."]


def _diverged(record: Record) -> Iterator[Sentence]:
    for index, family in enumerate(record["families"]):
        if family["diverged"]:
            count = Entry(str(family["diverged"]), f"families.{index}.diverged")
            yield [f"{family['label']} diverged under ", count, " of its seeds."]


def _verdicts(record: Record) -> Iterator[Sentence]:
    reference = record["reference"]
    groups: dict[str, list[str]] = {}
    for found in record["differences"]:
        groups.setdefault(found["verdict"], []).append(found["label"])
    names = {verdict: "; ".join(labels) for verdict, labels in groups.items()}
    if not groups:
        yield [f"Nothing can be tested yet: {reference}, the reference, shares no finished seed."]
    for verdict in ("better", "worse"):
        if verdict in names:
            yield [f"Shown to be {verdict} than {reference}: {names[verdict]}."]
    if "no difference shown" in names:
        yield [
            f"No difference to {reference} shown: {names['no difference shown']}; which is not to "
            "say that there is none: see the smallest difference that would have been detected."
        ]
    if "cannot be tested" in names:
        yield [
            f"Cannot be tested against {reference}: {names['cannot be tested']} (one seed only, "
            "differences that do not vary, or seeds that diverged)."
        ]


def statistics_note(record: Record) -> Sentence:
    """How the differences were tested."""
    percent = f"{record['level']:.0%}"
    return [
        "Differences of the final metric are paired by seed. Interval and p: two-sided t test of "
        "the differences, interval not corrected; p (Holm): corrected for the number of "
        "comparisons in this table. A difference counts as shown where the corrected p is below "
        f"{percent}. Detectable: the smallest true difference that so many seeds, with so much "
        f"noise, find with a chance of {record['power']:.0%} after correction. Wilcoxon's rank "
        f"test is made from {record['rank_seeds']} seeds on; with fewer it cannot reach {percent}."
    ]


def glossary(record: Record) -> list[tuple[str, str]]:
    """Each measure that is shown, with its meaning."""
    used = [c for c in MEASURES if any(family["measures"][c.key] for family in record["families"])]
    where, metric = record["evaluated_on"], record["metric"]
    found = [(c.title.format(metric=metric), c.meaning.format(where=where)) for c in used]
    if any(family.get("weights") for family in record["families"]):
        found.append((WEIGHTS, WEIGHTS_MEANING))
    if record["target"] is not None:
        target = written(record["target"], "metric", record["metric"])
        found.append(("target", f"{record['metric']} {target}"))
    return found


def difference_in_words(record: Record, found: Record) -> str:
    """One comparison with the reference in a line, for a terminal."""
    metric, by = record["metric"], found["difference"]
    unit = difference_unit(metric)
    mean = f"{written(by['mean'], 'metric', metric, True)} {unit}".strip()
    if found["p_holm"] is None:
        return f"{found['label']}: {mean} to {found['reference']}, {found['verdict']}"
    low, high = (written(by[end], "metric", metric, True) for end in ("low", "high"))
    smallest = written(found["detectable"], "metric", metric, True).lstrip("+")
    return (
        f"{found['label']}: {mean} to {found['reference']} (95 % interval {low} to {high}, "
        f"p {p_written(found['p_holm'])} after Holm): {found['verdict']}; "
        f"detectable {smallest} {unit}"
    ).strip()


def _final(record: Record, index: int) -> Entry:
    found = record["families"][index]["measures"]["final"]
    text = written(found["mean"], "metric", record["metric"])
    if found["low"] is not None:
        low, high = (written(found[end], "metric", record["metric"]) for end in ("low", "high"))
        text += f" (95 % interval {low} to {high})"
    return Entry(f"{record['metric']} {text}", f"families.{index}.measures.final")


def _tuned(record: Record) -> Sentence:
    if not record["tune"]:
        return []
    keys = ", ".join(record["tune"])
    return [
        f" {keys} was searched for each variant alike, over the same values, on examples held out "
        "of the training data; the test data took no part."
    ]


def weights_note(record: Record) -> list[str]:
    """How clients count, and whether that makes what is minimised another one."""
    found = {family.get("weights") for family in record["families"]} - {None}
    if not found:
        return []
    ways = "; ".join(f"{COUNT[policy]} ({policy})" for policy in COUNT if policy in found)
    if len(found) == 1 or found == {"uniform", "importance"}:
        return [f" Clients count {ways}: in this all have one objective."]
    return [
        f" Clients count {ways}, as the column {WEIGHTS} says. These are several objectives, and "
        "part of a difference may come from that."
    ]


def _budget(record: Record) -> Sentence:
    budget = record["budget"]
    if budget["kind"] == "rounds":
        early = ", or until they stopped early" if record["early_stopping"] else ""
        return [f" All were trained for the rounds that their scenario says{early}."]
    unit = "bytes" if budget["kind"] == "bytes_up" else "count"
    spent = {"bytes_up": "of upload", "client_steps": "optimiser steps of clients"}[budget["kind"]]
    amount = Entry(written(budget["amount"], unit, ""), "budget.amount")  # type: ignore[arg-type]
    return [" Each had a budget of ", amount, f" {spent}."]
