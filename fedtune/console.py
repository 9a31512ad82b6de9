"""What is shown on standard error while something long is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.errors import LiveError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

STDERR = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
_shown = ContextVar("shown", default=False)


def show_bars(shown: bool) -> None:
    """Whether `counting` shows anything from now on; before the first call it does not."""
    _shown.set(shown)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, gone at the end; none where another one may not have it beside itself.

    Args:
        what: is counted, for the bar.
        total: how many there are.

    Yields:
        What to call with the number of those that were done since the last call.
    """
    if (bar := _started(what, total)) is None:
        yield lambda done: None
        return
    try:
        yield lambda done: bar.advance(bar.task_ids[0], done)
    finally:
        bar.stop()


def _started(what: str, total: int) -> Progress | None:
    if not (_shown.get() and STDERR.is_terminal):
        return None
    bar = Progress(
        TextColumn(what), MofNCompleteColumn(), BarColumn(bar_width=24), TimeElapsedColumn(),
        TextColumn("ETA"), TimeRemainingColumn(), console=STDERR, transient=True,
    )  # fmt: skip
    bar.add_task("", total=total)
    try:
        bar.start()
    except LiveError:  # rich before 14.1 shows one at a time
        return None
    return bar
