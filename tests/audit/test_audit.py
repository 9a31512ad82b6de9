"""The audit finds what leaks, and does not accuse what keeps its promise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedtune.audit.attacks import tokens_found
from fedtune.audit.canaries import plant
from fedtune.audit.run import audit
from fedtune.cli.app import app
from fedtune.errors import ScenarioError
from fedtune.privacy import user
from fedtune.privacy.example import ExampleNoise
from fedtune.runs.build import build
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario

FEW = {
    "clients.count": 24, "clients.partition": {"kind": "iid"}, "clients.participation.value": 1.0,
    "task.head": "frozen", "adapter.rank": 4, "local.steps": 1, "local.batch_size": 64,
    "local.optimizer": "sgd", "local.lr": 0.1, "engine.threads": 1, "run.rounds": 2,
}  # fmt: skip
CANARIES = 100


def private(epsilon=1.0):
    return {**FEW, "privacy": {"mechanism": "example", "epsilon": epsilon, "clip": 1.0}}


@pytest.fixture(scope="module")
def honest():
    return audit("quickstart", private(), CANARIES)


def test_a_private_run_is_not_accused_and_the_control_without_noise_leaks(honest):
    assert 0.95 < honest.promised <= 1.0
    assert not honest.broken
    assert honest.shown <= honest.promised
    assert honest.control.bound.epsilon > 1.5
    assert honest.control.bound.auc > 0.9 > honest.attacks[0].bound.auc
    assert [attack.name for attack in honest.attacks][2:] == [
        "final model, by loss", "final model, by gradient",
    ]  # fmt: skip
    assert "nothing found against the promise" in honest.verdict


def test_noise_that_is_charged_and_not_added_is_found(monkeypatch):
    monkeypatch.setattr(
        ExampleNoise, "drawn", lambda self, stream, size, like: torch.zeros(size).to(like)
    )
    found = audit("quickstart", private(), CANARIES)
    assert found.broken
    assert found.verdict.startswith("BROKEN: the run leaks")


def test_a_user_level_run_is_audited_by_planted_clients(monkeypatch):
    privacy = {"mechanism": "user", "epsilon": 1.0, "delta": 1e-4, "clip": 1.0}
    changes = {**FEW, "privacy": privacy}
    honest = audit("quickstart", changes, 200)
    assert not honest.broken
    assert honest.control.bound.epsilon > 2.0
    monkeypatch.setattr(user, "normal", lambda stream, size, like: torch.zeros(size).to(like))
    assert audit("quickstart", changes, 200).broken


def test_canaries_are_half_in_and_belong_to_nobody_else():
    scenario = settle_paths(load_scenario("quickstart", FEW))
    task = build(scenario).task
    planted, canaries = plant(task, 100, 0)
    held = np.concatenate([planted.clients.rows(c) for c in planted.clients.eligible])
    assert set(canaries.rows[canaries.included]) <= set(held)
    assert not set(canaries.rows[~canaries.included]) & set(held)
    assert len(held) == len(np.unique(held))
    assert 30 < canaries.included.sum() < 70
    for client in planted.clients.eligible:
        own = canaries.rows[(canaries.owners == client) & canaries.included]
        assert set(own) <= set(planted.clients.rows(client))
    batch = planted.train.gather(torch.from_numpy(canaries.rows))
    true = task.train.gather(torch.from_numpy(canaries.rows)).labels
    assert torch.equal(batch.labels, (true + 1) % 10)
    with pytest.raises(ScenarioError, match="--canaries = 1000"):
        plant(task, 1000, 0)


def test_inputs_in_the_row_space_of_an_upload_are_found():
    torch.manual_seed(0)
    inputs = torch.randn(40, 3, 30)  # tokens, positions, width
    used = inputs[[2, 5, 9], [0, 1, 2]]
    upload = torch.randn(8, 3) @ used
    scores = tokens_found(upload, list(inputs))
    assert set(np.argsort(-scores)[:3]) == {2, 5, 9}
    assert scores[[2, 5, 9]].min() > -1e-5
    assert np.delete(scores, [2, 5, 9]).max() < -0.3


def test_tokens_of_one_upload_are_found_without_noise_and_hidden_with_it():
    text = {"task.kind": "text-classification", "task.base": "builtin:bert-words",
            "task.data": "builtin:intents", "task.head": "frozen", "clients.count": 60,
            "clients.partition": {"kind": "iid"}, "clients.participation.value": 0.1,
            "local.steps": 4, "local.batch_size": 4, "local.optimizer": "sgd", "local.lr": 0.1,
            "adapter.rank": 16, "engine.threads": 1, "run.rounds": 2}  # fmt: skip
    open_ = audit("quickstart", text, 40)
    hidden = audit("quickstart", {**text, "privacy": {"mechanism": "example", "epsilon": 1.0}}, 40)
    assert open_.tokens > 0.7 > 0.6 > hidden.tokens


def test_the_command_writes_a_record_and_a_picture(tmp_path):
    overrides = [f"{key}={json.dumps(value).replace(':', ' =')}" for key, value in FEW.items()]
    given = [part for one in overrides for part in ("--set", one)]
    found = CliRunner().invoke(
        app,
        ["audit", "quickstart", *given, "--canaries", "40", "--out", str(tmp_path / "a"), "--json"],
    )
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    written = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert {**told, "directory": None} == {**written, "directory": None}
    assert told["promised"] is None
    assert "no promise is made" in told["verdict"]
    assert (tmp_path / "a" / "roc.png").exists()
    again = CliRunner().invoke(app, ["audit", "quickstart", "--out", str(tmp_path / "a")])
    assert isinstance(again.exception, ScenarioError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.data": "builtin:synthetic"}, "made, not dealt"),
        ({"engine.kind": "flower"}, "clients of its own process"),
        ({"strategy.name": "fed-sb"}, "not audited"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_a_line(changes, message):
    with pytest.raises(ScenarioError, match=message):
        audit("quickstart", {**FEW, **changes}, 20)
