"""Cells of a comparison: run directories that are found again by what decides their result."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from fedtune.errors import ScenarioError
from fedtune.runs.api import resume, run
from fedtune.runs.directory import RunDirectory
from fedtune.runs.observing import Observer
from fedtune.scenario import Scenario, dump_scenario
from fedtune.tasks.library import Library

FOLDER, FORMAT, NAME_LENGTH, DIGEST_LENGTH = "cells", 1, 60, 12
Status = Literal["done", "started", "waiting"]


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        name: of its family and seed, for people.
        scenario: settled; what it is found by.
    """

    name: str
    scenario: Scenario

    @cached_property
    def digest(self) -> str:
        """Of what the scenario says beyond defaults, so that a key added to it changes none."""
        said = self.scenario.model_dump(mode="json", exclude_defaults=True)
        text = json.dumps([FORMAT, said], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


class CellStore:
    """The run directories of a comparison's cells.

    Args:
        path: of the comparison.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path / FOLDER
        there = sorted(self.folder.iterdir(), reverse=True) if self.folder.is_dir() else []
        self._there = {found.name.rpartition("-")[2]: found for found in there}

    def directory(self, cell: Cell) -> RunDirectory:
        """Its run directory, there or not."""
        if cell.digest not in self._there:
            name = re.sub(r"[^A-Za-z0-9.]+", "-", cell.name).strip("-")[:NAME_LENGTH]
            self._there[cell.digest] = self.folder / f"{name}-{cell.digest}"
        return RunDirectory(self._there[cell.digest])

    def status(self, cell: Cell) -> Status:
        """How far it has come."""
        directory = self.directory(cell)
        if directory.summary:
            return "done"
        return "started" if (directory.path / "scenario.toml").is_file() else "waiting"

    def train(self, cell: Cell, library: Library, observer: Observer) -> RunDirectory:
        """Run it, or go on with it.

        Raises:
            ScenarioError, RunError: as a run of its own would.
        """
        directory = self.directory(cell)
        if self.status(cell) == "waiting":
            return run(cell.scenario, (), directory.path, observer, None, library, pictures=False)
        if dump_scenario(directory.scenario) != dump_scenario(cell.scenario):
            raise ScenarioError(f"{str(directory.path)!r}: holds a run of another scenario")
        return resume(directory.path, (), observer, None, library, pictures=False)
