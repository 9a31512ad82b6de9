"""A folder of pictures: in folders called by their class, or named by metadata files."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from datasets.fingerprint import Hasher
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from numpy.typing import NDArray
from PIL import Image

from fedtune.errors import ScenarioError, listed, quoted
from fedtune.scenario.task import TaskSection
from fedtune.tasks.files import Source, form_of, read_file, stem_of
from fedtune.tasks.joined import joined
from fedtune.tasks.splits import below, split_named

IMAGE, LABEL, NAMES = "image", "label", "file_name"
BESIDE = ("", ".md", ".db", ".ini", ".yaml", ".yml", ".html", ".pdf", ".py", ".ipynb")
FORMAT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Sources = dict[str, Source]


@cache
def endings() -> frozenset[str]:
    """Those of the pictures that can be read."""
    Image.init()
    known = {ending for ending, form in Image.EXTENSION.items() if form in Image.OPEN}
    return frozenset({*ImageFolder.EXTENSIONS, *known})


def is_picture(file: Path) -> bool:
    """Whether a file is a picture by its name."""
    return file.suffix.lower() in endings()


def is_list(file: Path) -> bool:
    """Whether a file says of the pictures beside it what they are."""
    return form_of(file) is not None and stem_of(file) == "metadata"


def read_gallery(
    task: TaskSection, path: Path, files: list[Path], used: Collection[str], notes: list[str]
) -> Sources:
    """The pictures of a folder by split, with their classes or what metadata files say of them.

    Args:
        task: names the splits.
        path: of the folder.
        files: below it.
        used: the columns of labels that the task uses.
        notes: takes lines that the user should see.

    Raises:
        ScenarioError: for pictures of which it could only be guessed which split or class they are
            of, and for files that are no pictures that can be read.
    """
    pictures = [file for file in files if is_picture(file)]
    lists = [file for file in files if is_list(file)]
    strange = [
        file
        for file in files
        if not is_picture(file) and form_of(file) is None and file.suffix.lower() not in BESIDE
    ]
    if strange:
        raise _fault(
            path,
            f"{_few(path, strange)} cannot be read as pictures; save them as PNG or JPEG, or take "
            "them away",
        )
    splits = {_whole(file): _split(task, path, file) for file in pictures}
    if len(set(splits.values())) > 1 and None in splits.values():
        inside = [file for file in pictures if splits[_whole(file)] is not None]
        outside = [file for file in pictures if splits[_whole(file)] is None]
        raise _fault(
            path,
            f"{_few(path, inside)} lie in folders called as a split, {_few(path, outside)} do not; "
            "put all below folders of splits, or rename these",
        )
    if lists:
        return _by_lists(task, path, lists, splits, used, notes)
    return _by_class(task, path, pictures, splits)


def _split(task: TaskSection, path: Path, file: Path) -> str | None:
    found = [split for part in below(path, file) if (split := split_named(task, part))]
    return found[0] if found else None


def _by_class(
    task: TaskSection, path: Path, pictures: list[Path], splits: dict[Path, str | None]
) -> Sources:
    for file in pictures:
        inner = below(path, file)
        if not inner or split_named(task, inner[-1]):
            raise _fault(path, f"{file.relative_to(path)} lies in no folder of its class")
    depths = {len(below(path, file)): file for file in pictures}
    if len(depths) > 1:
        raise _fault(
            path,
            f"{_few(path, list(depths.values()))} lie at several depths; put every picture into a "
            "folder called by its class, all at one depth",
        )
    classes = sorted({file.parent.name for file in pictures})
    features = Features({IMAGE: ImageFeature(), LABEL: ClassLabel(names=classes)})
    found: Sources = {}
    for split in dict.fromkeys(splits.values()):
        own = [file for file in pictures if splits[_whole(file)] == split]
        columns = {
            IMAGE: _images([str(_whole(file)) for file in own]),
            LABEL: pa.array([classes.index(file.parent.name) for file in own], pa.int64()),
        }
        key = Hasher.hash((list(map(str, own)), classes))
        table = pa.table(columns, schema=features.arrow_schema)
        names = [str(file.relative_to(path)) for file in own]
        found[split or task.train_split] = Source(
            Dataset(table, fingerprint=key), names.__getitem__
        )
    return found


def _by_lists(
    task: TaskSection,
    path: Path,
    lists: list[Path],
    splits: dict[Path, str | None],
    used: Collection[str],
    notes: list[str],
) -> Sources:
    parts: dict[str, list[tuple[str, Source]]] = {}
    named: set[Path] = set()
    for file in lists:
        source, pictures = _listed(task, file, used)
        named |= set(pictures)
        own = [splits.get(picture) or _split(task, path, file) for picture in pictures]
        for split in dict.fromkeys(own):
            rows = np.flatnonzero([one == split for one in own])
            name = str(file.relative_to(path))
            parts.setdefault(split or task.train_split, []).append((name, _some(source, rows)))
    if left := [file for file in splits if file not in named]:
        root = _whole(path)
        notes.append(f"data: {_few(root, left)} are named by no metadata file, and left out")
    return {
        split: joined(task, [name for name, _ in found], [source for _, source in found])
        for split, found in parts.items()
    }


def _listed(task: TaskSection, file: Path, used: Collection[str]) -> tuple[Source, list[Path]]:
    """The rows of a metadata file with pictures for their names, and the files of these."""
    source = read_file(task, file, [*used, NAMES])
    rows = source.rows
    if NAMES not in rows.column_names or IMAGE in rows.column_names:
        found = listed(rows.column_names)
        raise ScenarioError(
            f"{file.name}: names pictures in a column {NAMES!r}, and has none called {IMAGE!r}; it "
            f"has: {found}"
        )
    pictures = []
    for row, name in enumerate(rows.data.column(NAMES).to_pylist()):
        picture = _whole(file.parent / str(name))
        if name is None or not picture.is_file():
            raise ScenarioError(f"{source.where(row)}: there is no picture called {quoted(name)}")
        pictures.append(picture)
    kept = rows.remove_columns(NAMES)
    features = Features({IMAGE: ImageFeature(), **kept.features})
    columns = [_images(list(map(str, pictures))), *kept.data.table.columns]
    table = pa.Table.from_arrays(columns, schema=features.arrow_schema)
    key = Hasher.hash((rows._fingerprint, str(file)))
    return Source(Dataset(table, fingerprint=key), source.where), pictures


def _some(source: Source, numbers: NDArray[np.int64]) -> Source:
    if len(numbers) == len(source.rows):
        return source
    key = Hasher.hash((source.rows._fingerprint, numbers.tolist()))
    rows = Dataset(source.rows.data.table.take(pa.array(numbers)), fingerprint=key)
    return Source(rows, lambda row: source.where(int(numbers[row])))


def _images(names: list[str]) -> pa.Array:
    return pa.array([{"bytes": None, "path": name} for name in names], FORMAT)


def _whole(file: Path) -> Path:
    """A file by a name that holds from anywhere; links stay links."""
    return Path(os.path.normpath(file.absolute()))


def _few(path: Path, files: list[Path]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{files[0].relative_to(path)}{more}"


def _fault(path: Path, reason: str) -> ScenarioError:
    return ScenarioError(f"task.data = {str(path)!r}: {reason}")
