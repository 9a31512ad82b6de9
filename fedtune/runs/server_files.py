"""Files between a ServerApp and the process that started its run."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path

import psutil

from fedtune.errors import FedtuneError, RunError
from fedtune.files import write_json
from fedtune.runs.observing import Line, Observer, Started

PAUSE = 2.0
STARTED, FAILED, OWNER = "started.json", "failed.json", "owner.pid"


class Reporting:
    """An observer that also tells the process that started the run, and ends the run without it.

    Args:
        path: the folder for its files; that process has written its id there.
        inner: the observer that shows the run.
    """

    def __init__(self, path: Path, inner: Observer) -> None:
        self.path, self.inner = path, inner

    def started(self, run: Started) -> None:
        """Write and pass on."""
        write_json(self.path / STARTED, dataclasses.asdict(run))
        self.inner.started(run)

    def finished_round(self, line: Line) -> None:
        """Pass on.

        Raises:
            RunError: if the process that started the run was killed.
        """
        self.inner.finished_round(line)
        if not owned(self.path):
            raise RunError("the process that started this run is gone")


def owned(path: Path) -> bool:
    """Whether the process that started a run, which wrote its id into a folder, is still there."""
    owner = path / OWNER
    return owner.exists() and psutil.pid_exists(int(owner.read_text("ascii")))


def end_with_owner(path: Path) -> None:
    """End this process soon after the one that started the run, whatever it waits for.

    Finished rounds are on disk; Flower's calls to a SuperLink that is gone try again for ever.
    """

    def watch() -> None:
        while owned(path):
            time.sleep(PAUSE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_failure(path: Path, error: Exception) -> None:
    """Write why the run failed."""
    ours = isinstance(error, FedtuneError)
    kind = type(error).__name__ if ours else "RunError"
    said = str(error) if ours else f"{type(error).__name__}: {error}"
    write_json(path / FAILED, {"kind": kind, "error": said})
