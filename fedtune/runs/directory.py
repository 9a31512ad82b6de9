"""The run directory: one folder that holds a run, for us and for other tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from fedtune.errors import ScenarioError
from fedtune.files import PARTIAL, Locked, append_line, locked, write_atomically, write_json
from fedtune.scenario import Scenario, dump_scenario, load_scenario
from fedtune.tasks.base import Rows

LOCK, DEPLOYMENT = ".lock", "deployment"


class RunDirectory:
    """The files of a run, by name.

    Args:
        path: of the directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path, scenario: Scenario) -> RunDirectory:
        """Start a new one.

        Raises:
            ScenarioError: if there is something at the path already.
        """
        cls.check_free(path)
        made = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            made.write_scenario(scenario)
        except OSError as error:
            raise ScenarioError(f"--out {str(path)!r}: cannot be written ({error})") from None
        return made

    @staticmethod
    def check_free(path: Path) -> None:
        """Raise `ScenarioError` if there is something at the path already."""
        try:
            taken = path.exists() and (not path.is_dir() or any(map(_is_ours, path.iterdir())))
        except OSError as error:
            raise ScenarioError(f"--out {str(path)!r}: cannot be used ({error})") from None
        if taken:
            raise ScenarioError(
                f"--out {str(path)!r}: exists and is not empty; go on with it by --resume, or "
                "name another"
            )

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Take up one that is there.

        Raises:
            ScenarioError: if it is not a run directory.
        """
        if not (path / "scenario.toml").is_file():
            raise ScenarioError(f"{str(path)!r}: not a run directory (it has no scenario.toml)")
        return cls(path)

    @property
    def scenario(self) -> Scenario:
        """The resolved scenario."""
        return load_scenario(self.path / "scenario.toml")

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def deployment(self) -> Path:
        """The folder of a deployment's own files, there before the run is."""
        return self.path / DEPLOYMENT

    @property
    def adapter(self) -> Path:
        """The folder of the PEFT adapter."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The folder of the whole model, of a run whose result is not an adapter."""
        return self.path / "model"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one a finished round; an unfinished last line is left out."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text("utf-8", "replace").splitlines() if file.exists() else []
        found = []
        for line in lines:
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(value, dict) or "round" not in value:
                break
            found.append(value)
        return found

    @property
    def looks(self) -> list[tuple[int, dict[str, float | None]]]:
        """The rounds that were evaluated, with what was found; null for NaN and infinity."""
        return [(line["round"], line["eval"]) for line in self.metrics if line["eval"]]

    def frame(self) -> pd.DataFrame:
        """The rounds as a table: a row a round, columns as in TensorBoard (`eval/accuracy`, ...).

        The row of round 0 is the evaluation before the first, once the run has ended.
        """
        initial = self.summary.get("initial")
        lines = [{"round": 0, "eval": initial}] if initial else []
        lines += [{**line, "eval": line["eval"] or {}} for line in self.metrics]
        table = pd.json_normalize(lines, sep="/", max_level=1)
        return table.set_index("round") if len(table) else table

    @property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds; empty for a run that has not ended."""
        file = self.path / "summary.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within it, no other process can write to the run.

        Raises:
            ScenarioError: if another one does now.
        """
        try:
            with locked(self.path / LOCK):
                yield
        except Locked:
            raise ScenarioError(f"{str(self.path)!r}: another process is running it now") from None

    def forget_summary(self) -> None:
        """Drop the result of an earlier end, because more rounds follow."""
        for name in ("summary.json", "clients.json"):
            (self.path / name).unlink(missing_ok=True)

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Add a round's line."""
        append_line(self.path / "metrics.jsonl", line)

    def forget_after(self, server_round: int) -> None:
        """Drop the lines of later rounds, which will be run again."""
        kept = [line for line in self.metrics if line["round"] <= server_round]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path / "metrics.jsonl", text.encode())

    def write_scenario(self, scenario: Scenario) -> None:
        """Write scenario.toml."""
        write_atomically(self.path / "scenario.toml", dump_scenario(scenario).encode())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_json(self.path / "summary.json", summary)

    def write_clients(self, found: dict[str, Any]) -> None:
        """Store how the final model serves each client."""
        write_json(self.path / "clients.json", found)

    @property
    def clients(self) -> dict[str, Any]:
        """How the final model serves each client; empty where that is not known."""
        file = self.path / "clients.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else {}

    def write_opening(self, found: dict[str, Any]) -> None:
        """Store what came before round 1."""
        write_json(self.path / "opening.json", found)

    @property
    def opening(self) -> dict[str, Any] | None:
        """What came before round 1, if anything did."""
        file = self.path / "opening.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else None

    def write_engine(self, resolved: dict[str, Any]) -> None:
        """Store what the engine settled."""
        write_json(self.path / "engine.json", resolved)

    def read_engine(self) -> dict[str, Any] | None:
        """What the engine settled before, if anything."""
        try:
            found: dict[str, Any] = json.loads((self.path / "engine.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def write_nodes(self, nodes: dict[int, int]) -> None:
        """Store which of Flower's nodes each client was."""
        write_json(self.path / "nodes.json", {str(client): node for client, node in nodes.items()})

    def write_partition(self, parts: list[Rows]) -> None:
        """Store which rows each client holds."""
        lengths = np.asarray([len(part) for part in parts], dtype=np.int64)
        buffer = BytesIO()
        np.savez(buffer, rows=np.concatenate(parts), lengths=lengths)
        write_atomically(self.path / "partition.npz", buffer.getvalue())

    def read_partition(self) -> list[Rows] | None:
        """Which rows each client holds, if stored and whole; they can be dealt again."""
        file = self.path / "partition.npz"
        try:
            with np.load(file) as stored:
                return np.split(stored["rows"], np.cumsum(stored["lengths"])[:-1])
        except (OSError, ValueError, KeyError, BadZipFile):
            return None


def _is_ours(entry: Path) -> bool:
    """Whether an entry is more than what a kill left of a first file, or what comes before."""
    return not entry.name.endswith(PARTIAL) and entry.name not in (LOCK, DEPLOYMENT)
