"""Public data at full size, where a checkout has it: every scenario's data loads as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import try_to_load_from_cache

from fedtune.scenario import load_scenario
from fedtune.tasks.load import load_task

SHARED = Path(__file__).parents[3] / "shared" / "data"
CPU = torch.device("cpu")
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent")


def loaded(name, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    scenario = load_scenario(name)
    if scenario.task.base == ENCODER and not try_to_load_from_cache(ENCODER, "model.safetensors"):
        pytest.skip("the encoder is absent; scripts/get_encoder.py")
    return scenario, load_task(scenario, CPU, torch.float32)


@pytest.mark.parametrize("name", ["e2e-nlg", "gsm8k", "shakespeare"])
def test_language_data(name, monkeypatch):
    scenario, task = loaded(name, monkeypatch)
    assert len(task.clients.eligible) == scenario.clients.count
    widths = task.train.widths(np.arange(len(task.train)))
    assert widths.max() <= scenario.task.max_length
    batch = task.train.gather(torch.arange(8))
    counts = task.objective.counts(batch.labels)
    assert counts.min() >= 1
    with torch.no_grad():
        losses = task.objective.losses(task.base.model(**batch.inputs).logits, batch.labels)
    assert 1.0 < float(losses.sum() / counts.sum()) < 12.0


def test_speakers_and_restaurants_are_the_clients(monkeypatch):
    _, task = loaded("e2e-nlg", monkeypatch)
    assert len(task.clients) == 20
    _, task = loaded("shakespeare", monkeypatch)
    assert len(task.clients.eligible) == 289
    assert sum(len(task.clients.rows(client)) for client in range(289)) == len(task.train)


@pytest.mark.parametrize(("name", "classes"), [("banking77", 77), ("goemotions", 28)])
def test_classification_data(name, classes, monkeypatch):
    scenario, task = loaded(name, monkeypatch)
    assert len(task.classes) == classes
    assert len(task.test_rows) <= scenario.task.test_examples
    assert sum(len(task.clients.rows(c)) for c in range(20)) == len(task.train)
