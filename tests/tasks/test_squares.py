"""Least squares: the engine's gradients are those of the normal equations; noise drifts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fedtune
from fedtune.errors import ScenarioError
from fedtune.runs.build import build
from fedtune.runs.export import export
from fedtune.scenario import load_scenario
from fedtune.tasks.squares import SquaredError, least_squares

FEW = {
    "clients.count": 10, "clients.examples": 40, "task.features": 8, "run.rounds": 3,
    "engine.threads": 1,
}  # fmt: skip


def test_the_labels_of_the_unit_vectors_solve_the_normal_equations():
    train, test, power = least_squares(60, 5, 0.2, seed=4)
    h, y, best = train.inputs["x"], train.targets, test.targets
    assert torch.allclose(h.T @ (h @ best), h.T @ y, atol=1e-10)
    assert power == pytest.approx(float(best.square().mean()))
    found = SquaredError(power).finish({"loss": 0.0, "deviation": power / 100})
    assert found["nmsd"] == pytest.approx(-20.0)


def test_a_clients_gradient_is_that_of_its_rows():
    federation = build(load_scenario("rerce", FEW))
    clients, layout = federation.clients, federation.adapted.layout
    (name,) = [spec.name for spec in layout.trained]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 8)))
    (work,) = clients.works([3], 1, {name: x})
    found = federation.engine.backend.gradient([work])[0]
    rows = torch.from_numpy(clients.training_rows(3))
    h, y = federation.task.train.inputs["x"][rows], federation.task.train.targets[rows]
    assert torch.allclose(found, h.T @ (h @ x[0] - y) / len(rows), atol=1e-12)


@pytest.mark.long
def test_without_noise_it_nears_the_solution_and_with_noise_it_drifts_away(tmp_path):
    few = {**FEW, "run.rounds": 120, "run.eval_every": 10, "local.steps": 60, "local.lr": 0.3}
    quiet = {"faults.noise_up": 0.0, "faults.noise_down": 0.0}
    clean = fedtune.run("rerce", {**few, **quiet}, tmp_path / "clean")
    noisy = fedtune.run("rerce", few, tmp_path / "noisy")
    silent, loud = (
        [line["eval"]["nmsd"] for line in d.metrics if line["eval"]] for d in (clean, noisy)
    )
    assert silent[-1] < -60
    assert silent[-1] < silent[0] - 20
    assert loud[-1] > min(loud) + 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"task.base": "builtin:vit-letters"}, "least-squares allows 'builtin:linear' only"),
        ({"task.validation": 0.2}, "evaluated on its solution only"),
        ({"attack.kind": "label-flip"}, "needs classes"),
        ({"clients.examples": 2}, "fewer than task.features = 128"),
        ({"clients.partition": {"kind": "dirichlet", "alpha": 1.0}}, "allowed: iid"),
    ],
)
def test_what_it_cannot_be(tmp_path, overrides, message):
    changes = {"clients.count": 4, "task.features": 128, **overrides}
    with pytest.raises(ScenarioError, match=message):
        fedtune.run("rerce", {"clients.examples": 64, **changes}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_its_export_says_where_the_solution_is(tmp_path):
    done = fedtune.run("rerce", {**FEW, "run.rounds": 1}, tmp_path / "run")
    with pytest.raises(ScenarioError, match=r"its solution is in .*adapter_model.safetensors"):
        export(done, tmp_path / "out", "both")
