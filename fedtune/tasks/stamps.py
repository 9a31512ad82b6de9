"""What tells the contents of files from others, whatever their names and times say.

A copy that keeps its time (`cp -p`, `rsync -t`, an archive) is another file to whoever reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

READ_WHOLE, REMEMBERED, END = 1 << 30, 1 << 24, 1 << 16

Stamp = tuple[Any, ...]


def stamps(files: Iterable[Path | str]) -> list[Stamp]:
    """A stamp of each file's content, in order; equal stamps are equal contents.

    Contents are read whole, up to `READ_WHOLE` bytes of all files together. Beyond that a stamp is
    of size, both times, inode, and the first and last `END` bytes.

    Args:
        files: names; one that is no file of this machine has an empty stamp.
    """
    paths = [Path(file) for file in files]
    sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
    of = whole if sum(sizes) <= READ_WHOLE else ends
    return [of(path) if path.is_file() else () for path in paths]


def whole(path: Path) -> Stamp:
    """The digest of a file; that of a large one is remembered while nothing about it changes."""
    about = path.stat()
    if about.st_size < REMEMBERED:
        return (_digest(path),)
    return (_remembered(path, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino),)


def ends(path: Path) -> Stamp:
    """Size, times, inode, and a digest of both ends of a file."""
    about, found = path.stat(), hashlib.sha256()
    with path.open("rb") as file:
        found.update(file.read(END))
        file.seek(max(0, about.st_size - END))
        found.update(file.read(END))
    times = about.st_mtime_ns, about.st_ctime_ns
    return about.st_size, *times, about.st_ino, found.hexdigest()


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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1024)
def _remembered(path: Path, *about: int) -> str:
    return _digest(path)
