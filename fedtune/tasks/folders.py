"""Which files of a folder are which split, and the rows that they hold."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_from_disk
from datasets.fingerprint import Hasher

from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks.cards import files_of_card
from fedtune.tasks.files import FORMS, Source, form_of, stem_of
from fedtune.tasks.galleries import is_list, is_picture, read_gallery
from fedtune.tasks.joined import read_files
from fedtune.tasks.splits import below, split_of
from fedtune.tasks.stamps import stamps, visible

SAVED_ONE, SAVED_SPLITS = "state.json", "dataset_dict.json"
SIDE_FILES = (".txt", ".json")
SHOWN = 4
Sources = dict[str, Source]
Files = dict[str, list[Path]]


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


def read_folder(task: TaskSection, path: Path, used: Collection[str], notes: list[str]) -> Sources:
    """The splits of a folder: saved ones, pictures, or files by their names.

    Args:
        task: names the splits.
        path: of the folder.
        used: the columns of texts and labels that the task uses.
        notes: takes lines that the user should see.

    Raises:
        ScenarioError: for files of which it could only be guessed which are meant.
    """
    if is_saved(path):
        return saved_splits(path)
    files = visible(path)
    splits = _by_name(task, path, files) or files_of_card(path)
    if splits is None:
        tables = _tables(path, files)
        if not tables and any(map(is_picture, files)):
            return read_gallery(task, path, files, used, notes)
        splits = _by_split(task, path, tables, notes)
    wanted = {name: files for name, files in splits.items() if _is_wanted(task, name)}
    if task.train_split not in wanted:
        raise ScenarioError(
            f"task.train_split = {task.train_split!r}: {task.data} has: "
            f"{', '.join(splits) or 'no file that can be read'}"
        )
    return {name: read_files(task, files, used) for name, files in wanted.items()}


def _is_wanted(task: TaskSection, split: str) -> bool:
    return split in (task.train_split, task.test_split)


def _by_name(task: TaskSection, path: Path, files: list[Path]) -> Files | None:
    """The files that are called as a split, each of any form; None where none is for training."""
    top = [file for file in files if file.parent == path and form_of(file)]
    own = {name.casefold(): name for name in (task.train_split, task.test_split)}
    found: Files = {}
    for file in top:
        if (name := own.get(stem_of(file).casefold())) is not None:
            found.setdefault(name, []).append(file)
    for name, several in found.items():
        if len(several) > 1:
            raise ScenarioError(
                f"task.data = {str(path)!r}: both {several[0].name} and {several[1].name} are "
                f"split {name!r}; take one away, or name a file in task.data"
            )
    if task.train_split not in found:
        return None
    if task.test_split not in found:
        others = [file for file in files if form_of(file) and file not in found[task.train_split]]
        tests = [file for file in others if _split(task, path, file) == task.test_split]
        if tests:
            found[task.test_split] = _tables(path, tests)
        elif task.test_split != "test":
            names = ", ".join(stem_of(file) for file in top)
            raise ScenarioError(f"task.test_split = {task.test_split!r}: {task.data} has: {names}")
    return found


def _by_split(task: TaskSection, path: Path, tables: list[Path], notes: list[str]) -> Files:
    """The files by the splits that their names say; all are for training where none says one."""
    found: Files = {}
    for file in tables:
        found.setdefault(_split(task, path, file) or "", []).append(file)
    nameless = found.pop("", [])
    if not found:
        names = [str(file.relative_to(path)) for file in nameless]
        within = {part for part in ("train", "test") for n in names if part in n.casefold()}
        if len(within) > 1:
            raise ScenarioError(
                f"task.data = {str(path)!r}: holds {', '.join(names[:SHOWN])}; call the files "
                "train.* and test.*"
            )
        return {task.train_split: nameless} if nameless else {}
    if nameless:
        told = ", ".join(str(file.relative_to(path)) for file in nameless[:SHOWN])
        notes.append(f"data: left out, since their names say no split: {told}")
    return found


def _split(task: TaskSection, path: Path, file: Path) -> str | None:
    return split_of(task, (*below(path, file), stem_of(file)))


def _tables(path: Path, files: list[Path]) -> list[Path]:
    """The files of rows in a folder, all of one form; none where it holds pictures.

    Raises:
        ScenarioError: for several forms, or files of rows beside pictures.
    """
    pictures = any(map(is_picture, files))
    found = [file for file in files if form_of(file) and not is_list(file)]
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
