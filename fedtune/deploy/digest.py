"""The digest by which a client names the base model that it accepts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from transformers.utils.hub import cached_file

from fedtune.errors import ScenarioError, first_line
from fedtune.tasks.bases import CONFIG, base_path

SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".model"}
PIECE = 1 << 22


def base_digest(base: str) -> str:
    """SHA-256 over names and contents of a base's weights, configuration and tokenizer.

    Raises:
        ScenarioError: if the base is not on this machine.
    """
    folder = Path(base_path(base))
    if not folder.is_dir():
        try:
            found = cached_file(str(base), CONFIG, local_files_only=True)
        except OSError as error:
            raise ScenarioError(f"base = {base!r}: {first_line(error)}") from None
        folder = Path(str(found)).parent
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in SUFFIXES and not file.name.startswith("."):
            total.update(f"{file.name}\0{_of_file(file)}\0".encode())
    return total.hexdigest()


def _of_file(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
    return found.hexdigest()
