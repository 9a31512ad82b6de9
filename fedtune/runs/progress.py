"""A run on the terminal: a bar with round, metric, clients/s and ETA; plain lines elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedtune.console import STDERR
from fedtune.grids.replies import BECAME, in_words
from fedtune.reporting.privacy import in_a_line
from fedtune.runs.directory import RunDirectory
from fedtune.runs.observing import Started

PLAIN_LINES = 10


class ConsoleObserver:
    """Shows a run on standard error, the closing lines on standard output.

    Args:
        quiet: show nothing while it runs.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = STDERR
        self.progress: Progress | None = None
        self.total = 0
        self.updates = 0
        self.seconds = 0.0
        self.metric = ""

    def started(self, run: Started) -> None:
        """Say what begins, and show the bar on a terminal."""
        if self.quiet:
            return
        self.total = run.rounds
        self.console.print(
            f"{run.strategy}, adapter {run.adapter}: {run.clients} clients, {run.parameters:,} "
            f"trained parameters, {run.engine} engine on {run.device}"
        )
        for note in run.notes:
            self.console.print(note)
        self.metric = _metric(run.initial)
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("round"), MofNCompleteColumn(), BarColumn(bar_width=24),
                TextColumn("{task.fields[metric]}"), TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(),
                console=self.console,
            )  # fmt: skip
            self.progress.start()
            self.progress.add_task(
                "", total=self.total, completed=run.first_round - 1, metric=self.metric, speed=""
            )

    def finished_round(self, line: dict[str, Any]) -> None:
        """Move the bar, or print now and then a line."""
        if self.quiet:
            return
        self.updates += line["clients"]
        self.seconds += line["seconds_train"]
        self.metric = _metric(line["eval"]) if line["eval"] else self.metric
        speed = f"{self.updates / self.seconds:.1f} clients/s" if self.seconds else ""
        for problem in line["problems"]:
            who = "a client" if problem["client"] is None else f"client {problem['client']}"
            self.console.print(
                f"round {line['round']}: {who} {problem['kind']}: {problem['reason']}"
            )
        if not line["clients"] and any(line[name] for name in BECAME):
            self.console.print(
                f"round {line['round']}: warning: no reply can be used: {in_words(line)}",
                style="yellow",
            )
        if self.progress is not None:
            self.progress.update(
                self.progress.task_ids[0], completed=line["round"], metric=self.metric, speed=speed
            )
        elif line["round"] % max(1, self.total // PLAIN_LINES) == 0:
            self.console.print(f"round {line['round']}/{self.total}: {self.metric}, {speed}")

    def close(self) -> None:
        """Take the bar down."""
        if self.progress is not None:
            self.progress.stop()

    def closing(self, directory: RunDirectory) -> None:
        """What was reached, and where it is."""
        summary = directory.summary
        out = Console(highlight=False, markup=False, soft_wrap=True)
        out.print(
            f"{_metric(summary['initial'])} before, {_metric(summary['final'])} after "
            f"{summary['rounds']} rounds (best {_metric(summary['best'])}), "
            f"{summary['bytes_up'] / 2**20:.2f} MiB up and {summary['bytes_down'] / 2**20:.2f} MiB "
            f"down, {summary['client_updates_per_second']:.1f} clients/s"
        )
        if summary.get("privacy"):
            out.print(in_a_line(summary["privacy"]))
        if directory.looks:
            out.print(f"learning curve: {directory.path / 'curve.png'}")
        whole = directory.model.is_dir()
        out.print(
            f"model:          {directory.model}"
            if whole
            else f"adapter:        {directory.adapter}"
        )


def _metric(found: dict[str, float]) -> str:
    found = {name: value for name, value in found.items() if value is not None}
    if "accuracy" in found:
        return f"accuracy {found['accuracy']:.1%}"
    if "perplexity" in found:
        return f"perplexity {found['perplexity']:.2f}"
    if "nmsd" in found:
        return f"NMSD {found['nmsd']:.1f} dB"
    return f"loss {found['loss']:.4f}" if "loss" in found else "no evaluation"
