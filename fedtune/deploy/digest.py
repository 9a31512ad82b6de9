"""The digest by which a client names the base model that it accepts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from transformers.utils.hub import cached_file

from fedtune.errors import ScenarioError, first_line
from fedtune.tasks.bases import CONFIG, base_path

SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".model"}
PIECE = 1 << 22


def base_folder(base: str) -> Path:
    """The folder of a base on this machine; nothing is fetched.

    Raises:
        ScenarioError: if it is not here.
    """
    folder = Path(base_path(base))
    if folder.is_dir():
        return folder
    try:
        return Path(str(cached_file(str(base), CONFIG, local_files_only=True))).parent
    except OSError as error:
        raise ScenarioError(f"base = {base!r}: {first_line(error)}") from None


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
