"""What happens in a deployment, as JSON lines: in the run directory and on the server's log."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fedtune.files import append_line
from fedtune.runs.observing import Line, Observer, Started

EVENTS = "events.jsonl"
COUNTS = (
    "clients", "failures", "rejected", "lost", "bytes_down", "bytes_up", "framing_down",
    "framing_up", "seconds",
)  # fmt: skip


class EventLog:
    """Writes events down, and is an observer around another.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inner: Observer | None = None

    def around(self, inner: Observer) -> EventLog:
        """This log, which passes on to an observer."""
        self.inner = inner
        return self

    def tell(self, event: str, **facts: Any) -> None:
        """Write an event down."""
        line = {"time": round(time.time(), 3), "event": event, **facts}
        print(json.dumps(line), flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        append_line(self.folder / EVENTS, line)

    def started(self, run: Started) -> None:
        """Tell that it begins, and pass on."""
        self.tell("started", strategy=run.strategy, first_round=run.first_round, rounds=run.rounds)
        if self.inner is not None:
            self.inner.started(run)

    def finished_round(self, line: Line) -> None:
        """Tell a round's counts and what was wrong with replies, and pass on."""
        counts = {name: line[name] for name in COUNTS}
        self.tell("round", round=line["round"], **counts, problems=line["problems"])
        if self.inner is not None:
            self.inner.finished_round(line)
