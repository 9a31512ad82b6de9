"""Files that are whole or absent: written beside, flushed to disk, then renamed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

PARTIAL = ".partial"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file by one with the given bytes; a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}{PARTIAL}")
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
    text = json.dumps(plain(value), indent=2, sort_keys=True, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def append_line(path: Path, value: Any) -> None:
    """Add a JSON line and flush it to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain(value), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
