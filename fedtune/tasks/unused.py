"""Keys of `[task]` that say how to read other data than those that are named: refused."""

from __future__ import annotations

from pathlib import Path

from fedtune.errors import ScenarioError
from fedtune.scenario.task import CLIENTS, TaskSection

CSV, TEXT, OTHER = "csv and tsv files", "txt files", "other data"
KINDS = {".csv": CSV, ".tsv": CSV, ".txt": TEXT}
PLAIN = {"train_split": "train", "test_split": "test"}


def check_used(task: TaskSection) -> None:
    """Refuse what has no use for where the rows come from.

    Raises:
        ScenarioError: naming the key, and what it is for.
    """
    path, where = Path(task.data).expanduser(), f"task.data = {task.data!r}"
    for key, wanted in (("columns", CSV), ("pattern", TEXT)):
        if (given := getattr(task, key)) is not None and wanted not in _kinds(task):
            raise ScenarioError(f"task.{key} = {given!r}: is for {wanted}, and {where} is none")
    if task.subset is not None and path.exists():
        raise ScenarioError(
            f"task.subset = {task.subset!r}: is of a data set of the hub, and {where} is on this "
            "machine"
        )
    for key, plain in PLAIN.items():
        if (given := getattr(task, key)) != plain and path.is_file():
            raise ScenarioError(
                f"task.{key} = {given!r}: {where} is one file, which has no splits; name a folder "
                "of them, or a second file as task.test"
            )


def _kinds(task: TaskSection) -> set[str]:
    """What kinds of files the rows are read from; of a folder, those that are called as a split."""
    named = [task.test] if task.data == CLIENTS else [task.data, task.test]
    paths = [Path(one).expanduser() for one in named if one is not None]
    inside = [file for path in paths if path.is_dir() for file in path.rglob("*")]
    own = {task.train_split.casefold(), task.test_split.casefold()}
    splits = [file for file in inside if file.name.split(".")[0].casefold() in own]
    return {_kind(file) for file in [*paths, *(splits or inside)]}


def _kind(file: Path) -> str:
    """By its name, packed or not."""
    return KINDS.get(Path(file.name.lower().removesuffix(".gz")).suffix, OTHER)
