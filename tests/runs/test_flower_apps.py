"""fedtune's ServerApp and ClientApp over Flower's grid, played in this process without Ray."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

import fedtune
from fedtune.errors import RunError, ScenarioError
from fedtune.grids import node_grid
from fedtune.grids.cohort_grid import CohortGrid
from fedtune.grids.strangers import AppClients
from fedtune.runs import client_app
from fedtune.runs.flower import check_out, scenario_of
from fedtune.scenario import dump_scenario, load_scenario
from tests.runs.kit import small

TEXT = {
    "task.kind": "text-classification",
    "task.base": "builtin:bert-words",
    "task.data": "builtin:intents",
    "task.train_examples": 200,
}
LANGUAGE = {
    "task.kind": "causal-lm",
    "task.base": "builtin:llama-words",
    "task.data": "builtin:sums",
    "task.instruction": "instruction",
    "task.response": "response",
    "clients.partition": {"kind": "natural", "by": "author"},
}


@pytest.fixture
def fresh():
    """No federation of another test in this process."""
    client_app._LOADED.clear()
    yield
    client_app._LOADED.clear()


def on_flower(path, overrides, nodes=6, resume=False):
    """A run whose clients are the ClientApp, one message at a time, each with its own context."""
    scenario = load_scenario("quickstart", {**overrides, "engine.kind": "flower"})
    config = {"scenario": dump_scenario(scenario), "out": str(path)}
    if resume:
        config = {"scenario": "quickstart", "out": str(path), "resume": True}
    grid = CohortGrid(AppClients(client_app.app, nodes, config), range(nodes))
    with grid.serving():
        if resume:
            return fedtune.resume(path, {"run.rounds": scenario.run.rounds}, grid=grid)
        return fedtune.run(scenario, out=path, grid=grid)


def adapter(directory) -> dict[str, torch.Tensor]:
    return load_file(directory.adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("task", [{}, TEXT, LANGUAGE], ids=["image", "text", "language"])
@pytest.mark.usefixtures("fresh")
def test_the_three_engines_agree(tmp_path, task):
    overrides = small(**{"engine.precision": "float64"}, **task)
    runs = {
        kind: fedtune.run("quickstart", {**overrides, "engine.kind": kind}, tmp_path / kind)
        for kind in ("cohort", "sequential")
    }
    runs["flower"] = on_flower(tmp_path / "flower", overrides)
    wanted = [line["eval"]["loss"] for line in runs["cohort"].metrics]
    for kind in ("sequential", "flower"):
        found = [line["eval"]["loss"] for line in runs[kind].metrics]
        assert found == pytest.approx(wanted, rel=1e-6)
        for name, tensor in adapter(runs["cohort"]).items():
            assert torch.allclose(tensor, adapter(runs[kind])[name], rtol=1e-5, atol=1e-7)
    lines = [[line["client_ids"] for line in runs[k].metrics] for k in runs]
    assert lines[0] == lines[1] == lines[2]
    assert runs["flower"].summary["engine"] == "flower"


@pytest.mark.usefixtures("fresh")
def test_local_heads_stay_with_clients_and_outlive_a_run_that_is_lengthened(tmp_path):
    overrides = small(task__head="local", engine__precision="float64", run__rounds=4)
    whole = fedtune.run("quickstart", overrides, tmp_path / "cohort")
    short = on_flower(tmp_path / "flower", {**overrides, "run.rounds": 2})
    client_app._LOADED.clear()
    long = on_flower(short.path, overrides, resume=True)
    losses = [[line["eval"]["loss"] for line in run.metrics] for run in (whole, long)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    heads = sorted(file.name for file in (whole.path / "clients").iterdir())
    assert heads == sorted(file.name for file in (long.path / "clients").iterdir())
    for name in heads:
        a, b = (load_file(run.path / "clients" / name) for run in (whole, long))
        assert all(torch.allclose(a[key], b[key], rtol=1e-5, atol=1e-8) for key in a)


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param({"local.client_momentum": 0.6}, marks=pytest.mark.long),
        pytest.param({"strategy.name": "rerce", "strategy.rho": 0.1}, marks=pytest.mark.long),
        {"strategy.name": "rerce", "strategy.rho": 0.1, "strategy.continual": True},
    ],
    ids=["momentum", "rerce", "continual"],
)
@pytest.mark.usefixtures("fresh")
def test_what_clients_keep_is_the_same_on_flower_and_outlives_a_process(tmp_path, kept):
    overrides = small(engine__precision="float64", run__rounds=4, **kept)
    whole = fedtune.run("quickstart", overrides, tmp_path / "cohort")
    short = on_flower(tmp_path / "flower", {**overrides, "run.rounds": 2})
    client_app._LOADED.clear()
    long = on_flower(short.path, overrides, resume=True)
    losses = [[line["eval"]["loss"] for line in run.metrics] for run in (whole, long)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.usefixtures("fresh")
def test_a_resumed_run_goes_on_with_its_own_scenario_whatever_the_configuration_names(tmp_path):
    overrides = small(local__lr=3e-2, run__rounds=3, engine__precision="float64")
    whole = fedtune.run("quickstart", overrides, tmp_path / "cohort")
    short = on_flower(tmp_path / "flower", {**overrides, "run.rounds": 1})
    long = on_flower(short.path, overrides, resume=True)
    losses = [[line["eval"]["loss"] for line in run.metrics] for run in (whole, long)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.usefixtures("fresh")
def test_a_run_of_local_heads_without_their_files_is_not_taken_up(tmp_path):
    overrides = small(task__head="local")
    short = on_flower(tmp_path / "run", {**overrides, "run.rounds": 1})
    shutil.rmtree(short.path / "kept")
    with pytest.raises(ScenarioError, match="holds nothing that clients kept"):
        on_flower(short.path, overrides, resume=True)


@pytest.mark.usefixtures("fresh")
def test_model_and_data_are_loaded_once_a_process_and_not_once_a_message(tmp_path, monkeypatch):
    built = []
    real = client_app.build

    def counting(scenario, **more):
        built.append(scenario)
        return real(scenario, **more)

    monkeypatch.setattr(client_app, "build", counting)
    done = on_flower(tmp_path / "run", small())
    assert done.summary["client_updates"] > 3
    assert len(built) == 1


@pytest.mark.usefixtures("fresh")
def test_another_number_of_nodes_than_clients_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(node_grid, "PATIENCE", 0.5)
    with pytest.raises(RunError, match=r"has 4 nodes and clients.count is 6.*num-supernodes=6"):
        on_flower(tmp_path / "run", small(), nodes=4)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.usefixtures("fresh")
def test_a_client_that_fails_is_named_or_skipped(tmp_path, monkeypatch, on_error):
    answer = client_app._answer

    def failing(message, context):
        if message.metadata.message_type == "train" and client_app.client_id(context) == 3:
            raise ValueError("no such sensor")
        return answer(message, context)

    monkeypatch.setattr(client_app, "_answer", failing)
    overrides = small(clients__participation__value=1.0, faults__on_error=on_error)
    scenario = load_scenario("quickstart", {**overrides, "engine.kind": "flower"})
    config = {"scenario": dump_scenario(scenario), "out": str(tmp_path / "run")}
    grid = CohortGrid(AppClients(client_app.app, 6, config), range(6), on_error="skip")
    with grid.serving():
        if on_error == "raise":
            with pytest.raises(RunError, match=r"client 3 failed.*no such sensor"):
                fedtune.run(scenario, out=tmp_path / "run", grid=grid)
        else:
            done = fedtune.run(scenario, out=tmp_path / "run", grid=grid)
            assert [line["failures"] for line in done.metrics] == [1, 1]
            assert "no such sensor" in done.metrics[0]["problems"][0]["reason"]


def test_local_heads_need_a_place_that_every_process_knows():
    scenario = load_scenario("quickstart", {"task.head": "local"})
    for out in ("", "runs/here"):
        with pytest.raises(ScenarioError, match="'out' an absolute path"):
            check_out(scenario, {"out": out})
    check_out(scenario, {"out": "/tmp/run"})
    check_out(load_scenario("quickstart"), {"out": ""})


def test_the_scenario_of_a_run_configuration_is_a_name_a_file_or_the_text(tmp_path):
    text = dump_scenario(load_scenario("quickstart", {"run.rounds": 7}))
    file = tmp_path / "mine.toml"
    file.write_text(text)
    assert scenario_of({"scenario": text}) == scenario_of({"scenario": str(file)})
    assert scenario_of({"scenario": "quickstart"}).engine.kind == "flower"
    for wrong, said in (("", "is empty"), ("nowhere", "no such file"), ("a = [", "not valid TOML")):
        with pytest.raises(ScenarioError, match=said):
            scenario_of({"scenario": wrong})
