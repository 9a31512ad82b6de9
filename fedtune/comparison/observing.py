"""What a comparison tells while it is trained."""

from __future__ import annotations

from typing import Protocol

from fedtune.comparison.cells import Cell
from fedtune.runs.observing import Line, Started


class GridObserver(Protocol):
    """Shows a comparison; a run's observer for each of its cells."""

    def planned(self, cells: int, done: int, rounds: int) -> None:
        """How many cells there are, how many are done, and how many rounds are left."""

    def notice(self, text: str) -> None:
        """A line that the user should see."""

    def began(self, cell: Cell) -> None:
        """Before a cell is trained."""

    def ended(self, cell: Cell, problem: str | None) -> None:
        """After it, with what went wrong, if anything did."""

    def started(self, run: Started) -> None:
        """Before the first round of a cell."""

    def finished_round(self, line: Line) -> None:
        """After each round of a cell."""
