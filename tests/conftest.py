"""What all tests share: runs that load built-in data once and draw only where it is asked for."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings

from fedtune.runs import api, build
from fedtune.tasks.library import Library
from fedtune.tasks.load import load_task

settings.register_profile("fedtune", deadline=None)  # a slow machine is no failure
settings.load_profile("fedtune")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LIBRARIES: dict[tuple[str, ...], Library] = defaultdict(Library)
DRAWING = {"on": False}


@contextmanager
def drawing() -> Iterator[None]:
    """Within it, runs draw their pictures."""
    DRAWING["on"] = True
    try:
        yield
    finally:
        DRAWING["on"] = False


@pytest.fixture(scope="session", autouse=True)
def lean() -> Iterator[None]:
    """A run of seconds would otherwise spend most of them on loading and drawing."""

    def load(scenario, device, dtype, parts=None, library=None):
        task = scenario.task
        if library is None and f"{task.base} {task.data}".count("builtin:") == 2:
            library = LIBRARIES[task.base, task.data, str(dtype)]
        return load_task(scenario, device, dtype, parts, library)

    def drawn(draw):
        return lambda *given: draw(*given) if DRAWING["on"] else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load_task", load)
        patch.setattr(api, "draw_run", drawn(api.draw_run))
        patch.setattr(api, "draw_partition", drawn(api.draw_partition))
        yield
