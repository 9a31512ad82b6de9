"""Files that are whole or absent: written beside, flushed to disk, then renamed."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file by one with the given bytes; a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def plain(value: Any) -> Any:
    """A value for JSON, which knows no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically."""
    text = json.dumps(plain(value), indent=2, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def append_line(path: Path, value: Any) -> None:
    """Add a JSON line and flush it to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain(value), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


class Locked(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; the system frees it when the process ends, however it ends.

    Raises:
        Locked: if another process holds it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(str(path)) from None
        yield
