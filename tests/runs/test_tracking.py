"""TensorBoard, MLflow and W&B hold the numbers of metrics.jsonl under the same names."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fedtune
from fedtune.errors import ScenarioError
from fedtune.runs import tracking
from fedtune.runs.tracking import scalars
from tests.runs.kit import small


def events(directory) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(directory.path / "tensorboard"))
    found.Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


@pytest.fixture(scope="module")
def lengthened(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    fedtune.run("quickstart", small(), path)
    return fedtune.resume(path, {"run.rounds": 3})


def test_tensorboard_has_every_number_of_every_round_once(lengthened):
    found = events(lengthened)
    for line in lengthened.metrics:
        for name, value in scalars(line).items():
            steps = dict(found[name])
            assert steps[line["round"]] == pytest.approx(value, rel=1e-6)
    assert [step for step, _ in found["eval/accuracy"]] == [0, 1, 2, 3]
    assert found["eval/loss"][0][1] == pytest.approx(lengthened.summary["initial"]["loss"])


def test_a_run_is_a_table_in_one_call(lengthened):
    table = fedtune.frame(lengthened.path)
    assert list(table.index) == [0, 1, 2, 3]
    assert set(table.columns) >= {"eval/accuracy", "eval/loss", "train/loss", "bytes_up", "seconds"}
    assert table["eval/loss"][3] == lengthened.metrics[-1]["eval"]["loss"]
    assert table["eval/loss"][0] == lengthened.summary["initial"]["loss"]


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ScenarioError, match=r"wandb is absent; pip install 'fedtune\[wandb\]'"):
        fedtune.run("quickstart", small(run__trackers=["wandb"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mlflow_holds_the_same_names(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs fedtune[mlflow]")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    directory = fedtune.run("quickstart", small(run__trackers=["mlflow"]), tmp_path / "run")
    directory = fedtune.resume(directory.path, {"run.rounds": 3})
    found = mlflow.search_runs(output_format="list")
    assert len(found) == 1
    assert found[0].data.params["run.seed"] == "0"
    for name, value in scalars(directory.metrics[-1]).items():
        assert found[0].data.metrics[name] == pytest.approx(value)
    client = mlflow.tracking.MlflowClient()
    history = client.get_metric_history(found[0].info.run_id, "eval/accuracy")
    assert [point.step for point in history] == [0, 1, 2, 3]


def test_wandb_takes_the_same_names(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs fedtune[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    directory = fedtune.run("quickstart", small(run__trackers=["wandb"]), tmp_path / "run")
    assert list((directory.path / "wandb").glob("offline-run-*/*.wandb"))
