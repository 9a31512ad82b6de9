"""Activations computed again: the same gradients from less memory."""

from __future__ import annotations

import pytest

import fedtune
from fedtune.cohort.checkpointing import checkpoint_layers
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.sizing import client_bytes
from fedtune.cohort.together import CohortBackend
from fedtune.errors import ScenarioError
from fedtune.scenario.local import LocalSection
from fedtune.tasks.conv import ConvConfig, ConvForImageClassification
from tests.cohort import kit
from tests.runs.kit import small

FLOAT64 = 1e-12


@pytest.mark.parametrize("model", [kit.vit, kit.bert, kit.gpt2])
@pytest.mark.parametrize("backend", [CohortBackend, SequentialBackend])
def test_nothing_but_memory_changes(model, backend):
    local = LocalSection(steps=4, batch_size=4, lr=0.01)
    changes, bytes_kept = [], []
    for checkpointed in (False, True):
        setting = kit.setting(model, local, dropout=0.3)
        if checkpointed:
            assert checkpoint_layers(setting.adapted.model) > 1
        made = backend(setting)
        works = kit.works(setting)
        changes.append(kit.change(setting, made.train(works, 1), works))
        if backend is CohortBackend:
            bytes_kept.append(client_bytes(made, works[0]))
    for client, change in changes[0].items():
        assert kit.distance(changes[1][client], change) < FLOAT64
    if bytes_kept:
        assert bytes_kept[1] < 0.7 * bytes_kept[0]


def test_a_run_has_it_by_a_key(tmp_path):
    overrides = small(engine__precision="float64")
    plain = fedtune.run("quickstart", overrides, tmp_path / "plain")
    key = {"engine.gradient_checkpointing": True}
    checked = fedtune.run("quickstart", {**overrides, **key}, tmp_path / "checked")
    assert checked.summary["final"]["loss"] == pytest.approx(plain.summary["final"]["loss"])


def test_a_model_without_layers_is_refused():
    with pytest.raises(ScenarioError, match="ConvForImageClassification has no layers"):
        checkpoint_layers(ConvForImageClassification(ConvConfig()))
