"""What is shown on standard error while something long is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, gone at the end; none where another one may not have it beside itself.

    Args:
        what: is counted, for the bar.
        total: how many there are.

    Yields:
        What to call with the number of those that were done since the last call.
    """
    progress = Progress(
        TextColumn(what), MofNCompleteColumn(), BarColumn(bar_width=24), TimeElapsedColumn(),
        TextColumn("ETA"), TimeRemainingColumn(), console=STDERR, transient=True,
        disable=not STDERR.is_terminal,
    )  # fmt: skip
    bar = progress.add_task("", total=total)
    try:
        progress.start()
    except LiveError:  # rich before 14.1 shows one at a time
        progress.disable = True
    try:
        yield lambda done: progress.advance(bar, done)
    finally:
        progress.stop()
