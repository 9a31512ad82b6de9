"""Keys of `[engine]` that change how a run is computed, not what."""

from __future__ import annotations

import pytest

import fedtune
from fedtune.errors import ScenarioError
from tests.runs.kit import small


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [{}, {"engine.kind": "sequential"}, {"engine.gradient_checkpointing": True}],
    ids=["cohort", "sequential", "checkpointed"],
)
def test_a_compiled_model_trains_alike(tmp_path, changes):
    """Clients differ in their number of steps, and batches in their size."""
    import torch

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
