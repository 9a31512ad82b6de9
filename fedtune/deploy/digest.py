"""The digest by which a client names the base model that it accepts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedtune.tasks.bases import base_folder

SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".model"}
PIECE = 1 << 22


def base_digest(base: str) -> str:
    """SHA-256 over names and contents of a base's weights, configuration and tokenizer.

    Raises:
        ScenarioError: if the base is not on this machine.
    """
    folder, total = base_folder(base), hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in SUFFIXES and file.is_file() and not file.name.startswith("."):
            total.update(f"{file.relative_to(folder)}\0{_of_file(file)}\0".encode())
    return total.hexdigest()


def _of_file(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
    return found.hexdigest()
