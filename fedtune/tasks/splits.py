"""Which split the name of a file or folder says, whatever its case and form."""

from __future__ import annotations

import re
from pathlib import Path

from fedtune.scenario.task import TaskSection

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
FORM = ("data", "dataset", "set", "split", "file", "files", "part", "shard", "of")
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
BETWEEN = re.compile(r"[-._ ()0-9]+")


def split_of(task: TaskSection, names: tuple[str, ...]) -> str | None:
    """The split of a file by the names of its folders and its own, without its ending.

    The last name that is no more than a split's, as `Train`, `test_set` or `train-00000-of-00002`,
    says it; else the last one that has a split's name in it (`tickets-train`).
    """
    for part in (split_named, _split_within):
        for name in reversed(names):
            if found := part(task, name):
                return found
    return None


def split_named(task: TaskSection, name: str) -> str | None:
    """The split that a name is no more than the name of."""
    shard = SHARD.fullmatch(name)
    for own in (task.train_split, task.test_split):
        if own.casefold() in (name.casefold(), shard and shard[1].casefold()):
            return own
    words = _words(name)
    if words and all(word in FORM for word in words[1:]):
        return _split_of_word(task, words[0]) or (shard[1] if shard else None)
    return shard[1] if shard else None


def below(path: Path, file: Path) -> tuple[str, ...]:
    """The names of the folders between a folder and a file in it."""
    return file.relative_to(path).parent.parts


def _split_within(task: TaskSection, name: str) -> str | None:
    """The one split that a name has in it."""
    found = {split for word in _words(name) if (split := _split_of_word(task, word))}
    return found.pop() if len(found) == 1 else None


def _split_of_word(task: TaskSection, word: str) -> str | None:
    for own in (task.train_split, task.test_split):
        if word == own.casefold():
            return own
    for split, words in WORDS.items():
        if any(word == w or word.removeprefix(w) in FORM for w in words if word.startswith(w)):
            return split
    return None


def _words(name: str) -> list[str]:
    return [word for word in BETWEEN.split(name.casefold()) if word]
