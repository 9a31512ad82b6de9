"""The same small search for every family, on validation data that is not the test data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedtune.comparison.cells import Cell, CellStore
from fedtune.comparison.grid import Family, Over, label_of, settled
from fedtune.comparison.measure import better_is_lower, looks_of
from fedtune.errors import Incompatible
from fedtune.scenario import Scenario
from fedtune.scenario.compare import CompareSection


@dataclass(frozen=True)
class Trial:
    """One candidate of a family's search.

    Attributes:
        values: of the keys that are searched.
        cells: its runs, one a seed.
    """

    values: Over
    cells: list[Cell]


def candidates(
    base: Scenario, family: Family, section: CompareSection
) -> list[tuple[Over, Scenario]]:
    """Every combination of the searched values that the family can have, on validation data."""
    found = []
    for values in itertools.product(*section.tune.values()):
        over = dict(zip(section.tune, values, strict=True))
        try:
            scenario = settled(base, {**family.over, **over, "task.validation": section.validation})
        except Incompatible:
            continue
        found.append((over, scenario))
    return found


def trial_cells(family: Family, values: Over, scenario: Scenario, seeds: int) -> list[Cell]:
    """A candidate's runs. Only their last evaluation counts, so no other is made."""
    section = scenario.run
    changes: dict[str, Any] = {}
    if section.early_stopping is None:
        changes["eval_every"] = section.rounds
    cells = []
    for seed in range(section.seed, section.seed + seeds):
        run = section.model_copy(update={**changes, "seed": seed})
        name = f"tune {family.label} {label_of(values)} seed {seed}"
        cells.append(Cell(name, scenario.model_copy(update={"run": run})))
    return cells


def score(trial: Trial, store: CellStore, metric: str) -> float | None:
    """Mean final metric of a candidate on validation data; None until all its runs are done."""
    finals = []
    for cell in trial.cells:
        directory = store.directory(cell)
        if not directory.summary:
            return None
        value = looks_of(directory)[-1]["eval"].get(metric)
        finals.append(math.nan if value is None else float(value))
    return sum(finals) / len(finals)


def choose(scores: Sequence[float | None], metric: str) -> int | None:
    """The best candidate; of equals the first; None if none could be trained."""
    sign = 1.0 if better_is_lower(metric) else -1.0
    usable = [(sign * s, i) for i, s in enumerate(scores) if s is not None and math.isfinite(s)]
    return min(usable)[1] if usable else None


def worst_of(
    searches: Sequence[tuple[Sequence[Trial], Sequence[float | None]]], metric: str
) -> tuple[list[Over], list[float | None]]:
    """The candidates that all searches have, and the worst score of each among them.

    Of candidates that diverged in more searches than others there is none: a defence that some
    attack breaks under every candidate is still tuned by the other attacks.

    Args:
        searches: trials and their scores, of families that share one choice.
        metric: that was scored.
    """
    worst = max if better_is_lower(metric) else min
    tables = [
        {
            label_of(trial.values): (trial.values, score)
            for trial, score in zip(*search, strict=True)
        }
        for search in searches
    ]
    shared = [key for key in tables[0] if all(key in table for table in tables)] if tables else []
    usable = [
        [s for table in tables if (s := table[key][1]) is not None and math.isfinite(s)]
        for key in shared
    ]
    most = max(map(len, usable), default=0)
    scores = [worst(found) if found and len(found) == most else None for found in usable]
    return [tables[0][key][0] for key in shared], scores


def at_edge(chosen: Mapping[str, Any], tune: Mapping[str, Sequence[Any]]) -> list[str]:
    """Keys whose chosen number is the least or greatest of those tried: the best may lie beyond."""
    found = []
    for key, values in tune.items():
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(values) > 1 and chosen[key] in (min(numbers), max(numbers)):
            found.append(key)
    return found
