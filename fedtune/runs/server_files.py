"""Files by which a ServerApp tells whoever started it how the run goes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fedtune.errors import FedtuneError
from fedtune.files import write_json
from fedtune.runs.loop import Line, Observer, Started

STARTED, FAILED = "started.json", "failed.json"


class StartedFile:
    """An observer that also writes what is known before the first round.

    Args:
        path: the folder for it.
        inner: the observer that shows the run.
    """

    def __init__(self, path: Path, inner: Observer) -> None:
        self.path, self.inner = path, inner

    def started(self, run: Started) -> None:
        """Write and pass on."""
        write_json(self.path / STARTED, dataclasses.asdict(run))
        self.inner.started(run)

    def finished_round(self, line: Line) -> None:
        """Pass on."""
        self.inner.finished_round(line)


def write_failure(path: Path, error: Exception) -> None:
    """Write why the run failed."""
    ours = isinstance(error, FedtuneError)
    kind = type(error).__name__ if ours else "RunError"
    said = str(error) if ours else f"{type(error).__name__}: {error}"
    write_json(path / FAILED, {"kind": kind, "error": said})
