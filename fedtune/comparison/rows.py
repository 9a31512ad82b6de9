"""The rows of a comparison: a family, its search and its runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedtune.comparison.cells import Cell
from fedtune.comparison.grid import Family, Over
from fedtune.comparison.tuning import Trial
from fedtune.runs.build import Federation
from fedtune.runs.loop import start_state
from fedtune.runs.plan import with_kept


@dataclass
class Row:
    """A family and its work.

    Attributes:
        family: the combination.
        trials: its search; none without `tune`.
        scores: of the trials on validation data.
        chosen: what the search settled.
        cells: one a seed, known once the search is done.
    """

    family: Family
    trials: list[Trial] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    chosen: Over = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    problem: str | None = None


def evaluated(federation: Federation) -> list[str]:
    """Names of the metrics that a run's evaluations give."""
    task = federation.task
    state = with_kept(federation, start_state(federation, None).arrays)
    found = federation.engine.evaluate(state, task.test, task.test_rows[:1])
    return [*found, *(["exact_match"] if task.exact_match is not None else [])]


def seed_by_seed(rows: list[Row]) -> list[Cell]:
    """The first seed of every family, then the second: stopped early, all have as many.

    Cells of one base model and data set come together, so each is loaded once.
    """
    most = max((len(row.cells) for row in rows), default=0)
    cells = [row.cells[i] for i in range(most) for row in rows if i < len(row.cells)]
    loads = [cell.scenario.task.model_dump_json() for cell in cells]
    first = {text: index for index, text in reversed(list(enumerate(loads)))}
    order = sorted(range(len(cells)), key=lambda index: first[loads[index]])
    return [cells[index] for index in order]
