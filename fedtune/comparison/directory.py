"""The directory of a comparison: its settings, its cells, its results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from fedtune.errors import ScenarioError
from fedtune.files import Locked, locked, write_atomically, write_json
from fedtune.scenario import Scenario, dump_scenario, load_scenario

SETTINGS, GRID, RECORD = "comparison.toml", "grid.json", "comparison.json"
LOCK = ".lock"


class ComparisonDirectory:
    """The files of a comparison, by name.

    Args:
        path: of the directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: Path) -> ComparisonDirectory:
        """Take up one that is there.

        Raises:
            ScenarioError: if it is none.
        """
        if not (path / SETTINGS).is_file():
            raise ScenarioError(f"{str(path)!r}: not a comparison (it has no {SETTINGS})")
        return cls(path)

    @property
    def scenario(self) -> Scenario:
        """The base scenario, with what is compared under `compare`."""
        return load_scenario(self.path / SETTINGS)

    @property
    def grid(self) -> dict[str, Any]:
        """The grid as it stands: families, their cells' directories, searches, failures."""
        return _read(self.path / GRID)

    @property
    def threads(self) -> int | None:
        """The CPU threads that cells here were trained with; None before there are any."""
        return int(self.grid["threads"]) if (self.path / GRID).is_file() else None

    @property
    def record(self) -> dict[str, Any]:
        """comparison.json: everything that tables, pictures and page show."""
        return _read(self.path / RECORD)

    def frame(self) -> pd.DataFrame:
        """A row a cell: the axes, the seed, and every measure."""
        rows = [
            {"family": family["label"], **family["over"], **family["chosen"],
             "seed": cell["seed"], "status": cell["status"], **cell["measures"]}
            for family in self.record["families"]
            for cell in family["cells"]
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def check_free(self) -> None:
        """Raise `ScenarioError` if there is something else than a comparison at the path."""
        try:
            found = list(self.path.iterdir()) if self.path.exists() else []
        except OSError as error:
            raise ScenarioError(f"--out {str(self.path)!r}: cannot be used ({error})") from None
        if any(file.name != LOCK for file in found) and not (self.path / SETTINGS).is_file():
            raise ScenarioError(f"--out {str(self.path)!r}: exists and is no comparison")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within it, no other process can train for the comparison.

        Raises:
            ScenarioError: if another one does now, or the directory cannot be written.
        """
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self.path / LOCK
            file.touch()
        except OSError as error:
            raise ScenarioError(f"--out {str(self.path)!r}: cannot be written ({error})") from None
        try:
            with locked(file):
                yield
        except Locked:
            raise ScenarioError(f"{str(self.path)!r}: another process is running it now") from None

    def write_settings(self, scenario: Scenario) -> None:
        """Write comparison.toml."""
        write_atomically(self.path / SETTINGS, dump_scenario(scenario).encode())

    def write_grid(self, grid: dict[str, Any]) -> None:
        """Write grid.json."""
        write_json(self.path / GRID, grid)

    def write_record(self, record: dict[str, Any]) -> None:
        """Write comparison.json."""
        write_json(self.path / RECORD, record)


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        raise ScenarioError(f"{str(file)!r}: cannot be read; run the comparison first") from None
    return found
