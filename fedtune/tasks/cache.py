"""Arrays that are made once, kept on disk and mapped into memory by every process of a machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from datasets.fingerprint import Hasher
from numpy.typing import NDArray
from torch import Tensor

from fedtune.errors import ScenarioError, first_line
from fedtune.tasks.stamps import stamps

Arrays = Mapping[str, NDArray[Any]]
MAKING, FORGOTTEN = "making-", 7 * 86400.0


def made_once(kind: str, key: tuple[Any, ...], make: Callable[[Path, Path], None]) -> Arrays:
    """Arrays in the cache of `datasets`, mapped read-only, by the names of their files.

    Args:
        kind: of arrays, a part of the folder's name.
        key: all that they depend on.
        make: writes them as `.npy` files into its first folder; what it writes into the second is
            thrown away.
    """
    folder = folder_once(kind, key, make)
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}


def folder_once(kind: str, key: tuple[Any, ...], make: Callable[[Path, Path], None]) -> Path:
    """A folder in the cache of `datasets` whose files are made once; arguments as `made_once`."""
    folder = cache_folder(kind, key)
    if not folder.is_dir():
        with _beside(folder) as beside:
            made = Path(beside) / "made"
            made.mkdir()
            make(made, Path(beside))
            for file in made.iterdir():  # whole on disk before it has its name
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first
                    raise
    return folder


def cache_folder(kind: str, key: tuple[Any, ...]) -> Path:
    """The folder in the cache of `datasets` for what depends on the key."""
    return Path(datasets.config.HF_DATASETS_CACHE, f"fedtune-{kind}", Hasher.hash(key))


def _beside(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder to work in; those that were left by killed processes long ago are removed."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for old in folder.parent.glob(f"{MAKING}*"):
            if time.time() - old.stat().st_mtime > FORGOTTEN:
                shutil.rmtree(old, ignore_errors=True)
        return tempfile.TemporaryDirectory(prefix=MAKING, dir=folder.parent)
    except OSError as error:
        raise ScenarioError(
            f"{str(folder.parent)!r}: cannot be written ({first_line(error)}); HF_DATASETS_CACHE "
            "names another folder"
        ) from None


def identity(rows: Dataset, column: str | None = None) -> tuple[Any, ...]:
    """What tells rows from others: their fingerprint, and the contents of the files they are in.

    Args:
        rows: of a split.
        column: of pictures, whose values may be no more than names of files.
    """
    files = {file["filename"] for file in rows.cache_files}
    if column is not None:
        files |= set(named_files(rows, column))
    return rows._fingerprint, stamps(sorted(file for file in files if file))


def named_files(rows: Dataset, column: str) -> list[str]:
    """The files that a column of pictures knows by name only, sorted."""
    found: set[str] = set()
    if isinstance(rows.features[column], ImageFeature):
        for part in rows.data.column(column).chunks:
            found |= set(part.field("path").filter(part.field("bytes").is_null()).to_pylist())
    return sorted(file for file in found if file)


def mapped(values: NDArray[Any]) -> Tensor:
    """A tensor over an array that is mapped read-only; nothing ever writes to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)
