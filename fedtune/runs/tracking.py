"""A run in TensorBoard (always), MLflow and Weights & Biases (if asked), under the same names.

Names are those of metrics.jsonl with `/` for nesting: `eval/loss`, `eval/accuracy`, `train/loss`,
`clients`, `bytes_up`, `seconds`, ...; the step is the round, 0 the evaluation before the first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fedtune.errors import RunError, ScenarioError, first_line
from fedtune.files import write_json
from fedtune.runs.directory import RunDirectory
from fedtune.runs.observing import Line, Observer, Started
from fedtune.scenario import Scenario

IDS = "trackers.json"
LOGGER = logging.getLogger("fedtune")


class Tracker(Protocol):
    """Where a run's numbers go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a round."""
        ...

    def close(self) -> None:
        """Flush."""
        ...


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, nested names joined by `/`."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            found.update({f"{key}/{name}": number for name, number in scalars(value).items()})
        elif isinstance(value, int | float) and key != "round":
            found[key] = value
    return found


class TensorBoard:
    """Event files under `tensorboard/` of the run directory.

    Args:
        directory: of the run.
        first_round: events of this round and later ones are forgotten (a run taken up again).
    """

    def __init__(self, directory: RunDirectory, first_round: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(  # type: ignore[no-untyped-call]
            str(directory.path / "tensorboard"), purge_step=first_round if first_round > 1 else 0
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a round."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]
        self.writer.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush."""
        self.writer.close()  # type: ignore[no-untyped-call]


class MLflow:
    """An MLflow run, where MLflow's own settings (MLFLOW_TRACKING_URI, ...) say."""

    def __init__(self, directory: RunDirectory, scenario: Scenario, known: str | None) -> None:
        self.mlflow = import_module("mlflow")
        name = {} if known else {"run_name": directory.path.name}
        self.run = self.mlflow.start_run(run_id=known, **name)
        self.id = str(self.run.info.run_id)
        if not known:
            raw = scenario.model_dump(mode="json", exclude_none=True)
            flat = {f"{s}.{k}": str(v) for s, part in raw.items() for k, v in part.items()}
            self.mlflow.log_params(flat)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a round."""
        self.mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """Flush."""
        self.mlflow.end_run()


class WeightsAndBiases:
    """A run in Weights & Biases, where its own settings (WANDB_PROJECT, WANDB_MODE, ...) say."""

    def __init__(self, directory: RunDirectory, scenario: Scenario, known: str | None) -> None:
        wandb = import_module("wandb")
        config = scenario.model_dump(mode="json", exclude_none=True)
        self.run = wandb.init(
            id=known, resume="allow", name=directory.path.name, dir=directory.path, config=config
        )
        self.id = str(self.run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a round."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Flush."""
        self.run.finish()


ASKED: dict[str, type[MLflow] | type[WeightsAndBiases]] = {
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def check_trackers(scenario: Scenario) -> None:
    """Raise `ScenarioError` if a tracker that is asked for is not installed."""
    for name in scenario.run.trackers:
        if find_spec(name) is None:
            raise ScenarioError(f"run.trackers: {name} is absent; pip install 'fedtune[{name}]'")


class Tracked:
    """An observer that passes on to the trackers of a scenario and to the observer within.

    Args:
        directory: of the run.
        scenario: says which trackers are asked for.
        inner: the observer that shows the run.
    """

    def __init__(self, directory: RunDirectory, scenario: Scenario, inner: Observer) -> None:
        self.directory, self.scenario, self.inner = directory, scenario, inner
        self.trackers: list[Tracker] = []

    def started(self, run: Started) -> None:
        """Open the trackers and log the evaluation before round 1."""
        self.trackers = [TensorBoard(self.directory, run.first_round)]
        self._open_asked()
        if run.first_round == 1:
            self._log(0, {"eval": run.initial})
        self.inner.started(run)

    def finished_round(self, line: Line) -> None:
        """Log a round."""
        self._log(line["round"], line)
        self.inner.finished_round(line)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self.trackers:
            tracker.close()

    def _log(self, step: int, line: Mapping[str, Any]) -> None:
        for tracker in list(self.trackers):
            try:
                tracker.log(step, scalars(line))
            except Exception as error:  # a lost server must not end the run
                name, said = type(tracker).__name__, first_line(error)
                LOGGER.warning(
                    "round %s is not in %s, nor will later ones be: %s", step, name, said
                )
                self.trackers.remove(tracker)

    def _open_asked(self) -> None:
        file = self.directory.path / IDS
        ids = _read(file)
        for name in self.scenario.run.trackers:
            try:
                made = ASKED[name](self.directory, self.scenario, ids.get(name))
            except Exception as error:
                raise RunError(
                    f"run.trackers: {name} cannot be used: {first_line(error)}"
                ) from error
            ids[name] = made.id
            self.trackers.append(made)
            write_json(file, ids)


def _read(file: Path) -> dict[str, str]:
    return json.loads(file.read_text("utf-8")) if file.exists() else {}
