"""How a run ends on the command line: its result, or a line that says how to go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedtune.cli.options import Interrupted
from fedtune.cli.printing import print_json
from fedtune.errors import RunError

if TYPE_CHECKING:
    from fedtune.runs.directory import RunDirectory
    from fedtune.runs.progress import ConsoleObserver


@contextmanager
def told(command: str, path: Path, observer: ConsoleObserver) -> Iterator[None]:
    """Within it, a failure, Ctrl-C and SIGTERM end in a line that says how to go on.

    Args:
        command: that goes on with `--resume`, and
        path: the run directory that it is given.
        observer: closed at the end.
    """

    def more() -> str:
        kept = f"; finished rounds are kept; go on with: {command} --resume {path}"
        return kept if (path / "scenario.toml").is_file() else ""

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted{more()}") from None
    except RunError as error:
        raise RunError(f"{error}{more()}") from error
    except (OSError, RuntimeError) as error:
        raise RunError(f"{type(error).__name__}: {error}{more()}") from error
    finally:
        observer.close()


def show(directory: RunDirectory, observer: ConsoleObserver, as_json: bool) -> None:
    """Show a finished run."""
    if as_json:
        print_json({"directory": str(directory.path), **directory.summary})
    else:
        observer.closing(directory)
