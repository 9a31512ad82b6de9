"""Keys of `[engine]` that change how a run is computed, not what."""

from __future__ import annotations

import pytest
import torch

import fedtune
from fedtune.errors import ScenarioError
from fedtune.runs.engines import pick_device, prepare_torch
from fedtune.scenario.schema import EngineSection
from tests.runs.kit import small


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [{}, {"engine.kind": "sequential"}, {"engine.gradient_checkpointing": True}],
    ids=["cohort", "sequential", "checkpointed"],
)
def test_a_compiled_model_trains_alike(tmp_path, changes):
    """Clients differ in their number of steps, and batches in their size."""
    overrides = {
        **small(engine__precision="float64", adapter__dropout=0.1, run__rounds=2), **changes
    }  # fmt: skip
    plain = fedtune.run("quickstart", overrides, tmp_path / "plain")
    torch._dynamo.utils.counters.clear()
    compiled = fedtune.run("quickstart", {**overrides, "engine.compile": True}, tmp_path / "fast")
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 0
    assert compiled.summary["final"]["loss"] == pytest.approx(
        plain.summary["final"]["loss"], rel=1e-9
    )


@pytest.mark.parametrize("key", ["gradient_checkpointing", "compile"])
def test_gradients_of_single_examples_are_refused_beside_it(tmp_path, key):
    private = {"privacy.mechanism": "example", "privacy.epsilon": 8.0, f"engine.{key}": True}
    with pytest.raises(ScenarioError, match=f"engine.{key} = true: .*gradients of single examples"):
        fedtune.run("quickstart", small(**private), tmp_path / "run")


def test_a_device_is_the_one_that_was_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = {"auto": "cuda:0", "cpu": "cpu", "cuda": "cuda:0", "cuda:1": "cuda:1"}
    for given, found in names.items():
        assert pick_device(given) == found
        assert prepare_torch(EngineSection(device=given, threads=1), None) == torch.device(found)
    with pytest.raises(ScenarioError, match=r"'cuda:2': this machine has: cpu, cuda:0, cuda:1"):
        pick_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"


def test_torch_is_told_to_be_deterministic(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for wanted in (True, False):
        prepare_torch(EngineSection(device="cpu", threads=1, deterministic=wanted), None)
        assert torch.are_deterministic_algorithms_enabled() is wanted
