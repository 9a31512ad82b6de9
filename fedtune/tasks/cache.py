"""Arrays that are made once, kept on disk and mapped into memory by every process of a machine."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.fingerprint import Hasher
from numpy.typing import NDArray
from torch import Tensor

Arrays = Mapping[str, NDArray[Any]]


def made_once(kind: str, key: tuple[Any, ...], make: Callable[[Path, Path], None]) -> Arrays:
    """Arrays in the cache of `datasets`, mapped read-only, by the names of their files.

    Args:
        kind: of arrays, a part of the folder's name.
        key: all that they depend on.
        make: writes them as `.npy` files into its first folder; what it writes into the second is
            thrown away.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / f"fedtune-{kind}" / Hasher.hash(key)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            made = Path(beside) / "made"
            made.mkdir()
            make(made, Path(beside))
            with suppress(OSError):  # another process was first
                made.rename(folder)
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}


def mapped(values: NDArray[Any]) -> Tensor:
    """A tensor over an array that is mapped read-only; nothing ever writes to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)
