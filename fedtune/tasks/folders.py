"""Which files of a folder are which split, and the rows that they hold."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.fingerprint import Hasher
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks.cache import cache_folder
from fedtune.tasks.files import FORMS, Source, form_of, read_file, stem_of
from fedtune.tasks.stamps import stamps, visible

SAVED_ONE, SAVED_SPLITS = "state.json", "dataset_dict.json"
CARD, SIDE_FILES = "README.md", (".txt", ".json")
SHOWN = 4
Sources = dict[str, Source]


def is_saved(path: Path) -> bool:
    """Whether a folder was saved by `datasets`."""
    return is_one(path) or (path / SAVED_SPLITS).exists()


def is_one(path: Path) -> bool:
    """Whether it holds rows that are in no split."""
    return (path / SAVED_ONE).exists()


def saved_splits(path: Path) -> Sources:
    """The splits of a folder that was saved by `datasets`; `train` where it holds one only."""
    found = load_from_disk(str(path))
    splits = found if isinstance(found, DatasetDict) else {"train": found}
    for rows in splits.values():
        files = [file["filename"] for file in rows.cache_files]
        rows._fingerprint = Hasher.hash((rows._fingerprint, stamps(files)))
    return sources_of(splits, path)


def sources_of(splits: Any, folder: Path | None = None) -> Sources:
    """Splits whose rows have numbers, from 0, but no lines."""

    def source(name: str, rows: Dataset) -> Source:
        return Source(rows, lambda row: f"split {name!r}, row {row}", folder)

    return {name: source(name, rows) for name, rows in splits.items()}


def read_folder(task: TaskSection, path: Path, used: Collection[str]) -> Sources:
    """The splits of a folder: saved ones, files named by their split, or what `datasets` makes.

    Raises:
        ScenarioError: for files of which it could only be guessed which are meant.
    """
    if is_saved(path):
        return saved_splits(path)
    named = [file for file in visible(path) if file.parent == path and form_of(file)]
    if any(stem_of(file) == task.train_split for file in named):
        return _by_name(task, path, named, used)
    tables = _tables(path)
    if not tables or _has_configurations(path):
        return sources_of(_by_datasets(path), path)
    patterns = get_data_patterns(str(path.resolve()))
    listed = DataFilesDict.from_patterns(patterns, base_path=str(path.resolve()))
    wanted = {file.resolve() for file in tables}
    splits = {name: [f for f in map(Path, files) if f in wanted] for name, files in listed.items()}
    return {name: _joined(task, files, used) for name, files in splits.items() if files}


def _by_name(task: TaskSection, path: Path, files: list[Path], used: Collection[str]) -> Sources:
    found: dict[str, Path] = {}
    for file in files:
        name = stem_of(file)
        if name in found and name in (task.train_split, task.test_split):
            raise ScenarioError(
                f"task.data = {str(path)!r}: both {found[name].name} and {file.name} are split "
                f"{name!r}; take one away, or name a file in task.data"
            )
        found[name] = file
    if task.test_split not in found and task.test_split != "test":
        raise ScenarioError(
            f"task.test_split = {task.test_split!r}: {task.data} has: {', '.join(found)}"
        )
    wanted = [name for name in (task.train_split, task.test_split) if name in found]
    return {name: read_file(task, found[name], used) for name in wanted}


def _tables(path: Path) -> list[Path]:
    """The files of rows in a folder, all of one form; none where it holds pictures.

    Raises:
        ScenarioError: for several forms, or files of rows beside pictures.
    """
    files = visible(path)
    pictures = any(file.suffix.lower() in ImageFolder.EXTENSIONS for file in files)
    found = [file for file in files if form_of(file) and stem_of(file) != "metadata"]
    tables = [file for file in found if form_of(file) not in SIDE_FILES]
    if pictures and not tables:
        return []
    tables = tables or found
    forms = sorted({str(form_of(file)) for file in tables}, key=FORMS.index)
    if len(forms) > 1 or pictures:
        names = [str(file.relative_to(path)) for file in tables]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        beside = " beside pictures" if pictures else ""
        raise ScenarioError(
            f"task.data = {str(path)!r}: holds {', '.join(names[:SHOWN])}{more}{beside}; name one "
            "in task.data and one in task.test, or call them train.* and test.*"
        )
    return tables


def _has_configurations(path: Path) -> bool:
    """Whether the card of a folder says which files are what, as on the hub."""
    card = path / CARD
    return card.is_file() and re.search(r"(?m)^configs:", card.read_text("utf-8")) is not None


def _by_datasets(path: Path) -> DatasetDict:
    """What `datasets` makes of a folder, anew where a file was added or has other content."""
    files = visible(path)
    tables = [file for file in files if file.suffix.lower() not in ImageFolder.EXTENSIONS]
    key = [str(file.relative_to(path)) for file in files], stamps(tables)
    found = load_dataset(str(path), cache_dir=str(cache_folder("folders", key)))
    for rows in found.values():
        rows._fingerprint = Hasher.hash((rows._fingerprint, key))
    return found


def _joined(task: TaskSection, files: list[Path], used: Collection[str]) -> Source:
    """The rows of several files, one after another; classes meet by their names."""
    sources = [read_file(task, file, used) for file in files]
    if len(sources) == 1:
        return sources[0]
    parts = [source.rows for source in sources]
    if len({str(part.features) for part in parts}) > 1:
        parts = [_named(part) for part in parts]
    ends = list(accumulate(map(len, parts)))

    def where(row: int) -> str:
        which = int(np.searchsorted(ends, row, side="right"))
        return sources[which].where(row - ends[which] + len(parts[which]))

    return Source(concatenate_datasets(parts), where, sources[0].folder)


def _named(rows: Dataset) -> Dataset:
    """The rows with the names of their classes for their numbers."""
    for column, feature in rows.features.items():
        if isinstance(feature, ClassLabel):
            names = [None if v is None else feature.int2str(v) for v in rows[column]]
            rows = rows.remove_columns(column).add_column(column, names, feature=Value("string"))
    return rows
