"""A comparison on the terminal: one bar over all its rounds, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedtune.comparison.cells import Cell
from fedtune.console import STDERR
from fedtune.reporting.measures import written
from fedtune.runs.observing import Line, Started

ETA_WINDOW = 600.0


class ConsoleGrid:
    """Shows a comparison on standard error.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = STDERR
        self.progress: Progress | None = None
        self.cells = self.place = self.rounds = self.rounds_done = self.before = self.wanted = 0
        self.begun = time.monotonic()
        self.name = self.metric = ""
        self.notes: set[str] = set()

    def planned(self, cells: int, done: int, rounds: int) -> None:
        """Show how much there is, and the bar on a terminal."""
        self.cells, self.rounds = cells, rounds
        if self.quiet:
            return
        self.console.print(
            f"{cells} runs, {done} of them done before; about {rounds:,} rounds to train"
        )
        if self.console.is_terminal and rounds:
            self.progress = Progress(
                TextColumn("{task.fields[what]}"), BarColumn(bar_width=24),
                TextColumn("{task.percentage:.0f} %"), TextColumn("{task.fields[metric]}"),
                TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(),
                console=self.console, speed_estimate_period=ETA_WINDOW,
            )  # fmt: skip
            self.progress.start()
            self.progress.add_task("", total=rounds, what="", metric="")

    def notice(self, text: str) -> None:
        """Print a line, once."""
        if not self.quiet and text not in self.notes:
            self.notes.add(text)
            self.console.print(text)

    def began(self, cell: Cell) -> None:
        """Name the cell."""
        self.place += 1
        self.name, self.metric = cell.name, ""
        self.before, self.wanted = self.rounds_done, cell.scenario.run.rounds

    def started(self, run: Started) -> None:
        """Say what a run has to say, once for all of them; count rounds that were done before."""
        for note in run.notes:
            self.notice(note)
        self._move(run.first_round - 1)

    def finished_round(self, line: Line) -> None:
        """Move the bar."""
        for name in ("accuracy", "perplexity", "loss"):
            if line["eval"] and name in line["eval"]:
                self.metric = f"{name} {written(line['eval'][name], 'metric', name)}"
                break
        self._move(1)

    def ended(self, cell: Cell, problem: str | None) -> None:
        """Say how a cell ended: failures always, the rest where there is no bar.

        Rounds that it did not need, because it stopped early or failed, count as gone.
        """
        if self.metric or problem:
            self._move(max(0, self.wanted - (self.rounds_done - self.before)))
        if problem:
            self.notice(f"{cell.name}: failed: {problem}")
        elif self.progress is None and self.metric:
            left = ""
            if 0 < self.rounds_done < self.rounds:
                spent = time.monotonic() - self.begun
                minutes = spent * (self.rounds - self.rounds_done) / self.rounds_done / 60
                left = f", about {minutes:.1f} min left"
            self.notice(f"{self.place}/{self.cells} {cell.name}: {self.metric}{left}")

    def close(self) -> None:
        """Take the bar down."""
        if self.progress is not None:
            self.progress.stop()

    def _move(self, rounds: int) -> None:
        self.rounds_done += rounds
        if self.progress is not None:
            what = f"{self.place}/{self.cells} {self.name}"
            self.progress.update(
                self.progress.task_ids[0], advance=rounds, what=what, metric=self.metric
            )
