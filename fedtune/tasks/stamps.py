"""What tells the contents of files from others, whatever their names and times say.

A copy that keeps its time (`cp -p`, `rsync -t`, an archive) is another file to whoever reads it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

READ_WHOLE, END = 1 << 30, 1 << 16
SETTLED = 2_000_000_000  # ns, after which a change of a file shows in its times

Stamp = tuple[Any, ...]
_known: dict[Path, tuple[Stamp, str]] = {}


def stamps(files: Iterable[Path | str]) -> list[Stamp]:
    """A stamp of each file's content, in order; equal stamps are equal contents.

    Contents are read whole, up to `READ_WHOLE` bytes of all files together. Beyond that a stamp is
    of size, both times, inode, and the first and last `END` bytes.

    Args:
        files: names; one that is no file of this machine has an empty stamp.
    """
    paths = [Path(file) for file in files]
    here = [is_file(path) for path in paths]
    sizes = [path.stat().st_size for path, found in zip(paths, here, strict=True) if found]
    of = whole if sum(sizes) <= READ_WHOLE else ends
    return [of(path) if found else () for path, found in zip(paths, here, strict=True)]


def is_file(name: Path | str) -> bool:
    """Whether a file of this name is on this machine; also of a text that can be no name."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def whole(path: Path) -> Stamp:
    """The digest of a file, remembered while nothing about it changes."""
    about, before = _about(path), _known.get(path)
    if before is not None and before[0] == about:
        return (before[1],)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - path.stat().st_ctime_ns > SETTLED:
        _known[path] = about, found
    return (found,)


def ends(path: Path) -> Stamp:
    """Size, times, inode, and a digest of both ends of a file."""
    about, found = _about(path), hashlib.sha256()
    with path.open("rb") as file:
        found.update(file.read(END))
        file.seek(max(0, about[0] - END))
        found.update(file.read(END))
    return *about, found.hexdigest()


def _about(path: Path) -> Stamp:
    """What a system knows of a file; no copy keeps all of it."""
    of = path.stat()
    return of.st_size, of.st_mtime_ns, of.st_ctime_ns, of.st_ino, of.st_dev


def folder_stamps(folder: Path) -> list[tuple[str, Stamp]]:
    """The files below a folder, hidden ones apart, with their stamps."""
    files = visible(folder)
    names = [str(file.relative_to(folder)) for file in files]
    return list(zip(names, stamps(files), strict=True))


def visible(folder: Path) -> list[Path]:
    """The files below a folder, sorted, but for hidden ones and what `datasets` keeps there."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and not file.match("cache-*.arrow")
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
