"""A cohort of K equals K cohorts of one equals the sequential backend."""

from __future__ import annotations

import pytest
import torch

from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.plan import plan_work
from fedtune.cohort.together import CohortBackend
from fedtune.scenario.schema import LocalSection
from tests.cohort import kit

FLOAT64 = 1e-8
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "lr": 0.1},
    "momentum": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "clip": 0.5},
}


def three_rounds(make, setting, works, together: bool):
    """Train each client for 3 rounds from its own last state; gives its change of round 3."""
    backend = make(setting)
    for server_round in (1, 2, 3):
        if server_round > 1:
            works = [
                plan_work(w.client, server_round, rows_of(w), r.tensors, setting.local, 0)
                for w, r in zip(works, results, strict=True)  # noqa: F821
            ]
        groups = [works] if together else [[work] for work in works]
        results = [r for group in groups for r in backend.train(group, server_round)]
    return kit.change(setting, results, works), results


def rows_of(work):
    import numpy as np

    return np.unique(np.concatenate([b for step in work.steps for b in step]))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["lora", "ffa"])
@pytest.mark.parametrize("head", ["shared", "frozen"])
def test_three_rounds_of_ragged_clients_agree_in_float64(name, kind, head):
    local = LocalSection(epochs=3, batch_size=3, **OPTIMIZERS[name])
    arguments = {"kind": kind, "head": head, "dropout": 0.2, "local": local}

    def changes(make, together):
        setting = kit.setting(**arguments)
        return three_rounds(make, setting, kit.works(setting), together)

    together, results = changes(CohortBackend, True)
    apart, _ = changes(CohortBackend, False)
    plain, plain_results = changes(SequentialBackend, False)
    for client in together:
        assert kit.distance(together[client], plain[client]) < FLOAT64
        assert kit.distance(together[client], apart[client]) < FLOAT64
    assert [r.steps for r in results] == [r.steps for r in plain_results] == [9, 12, 3, 9]
    losses = torch.tensor([r.loss for r in results])
    torch.testing.assert_close(losses, torch.tensor([r.loss for r in plain_results]))


@pytest.mark.parametrize("model", [kit.bert, kit.roberta, kit.gpt2])
@pytest.mark.parametrize("kind", ["lora", "ffa"])
def test_token_models_with_sequences_of_unequal_length_agree(model, kind):
    local = LocalSection(
        steps=5, batch_size=4, accumulation=2, schedule="cosine", warmup=1, lr=0.01
    )
    results = {}
    for make in (CohortBackend, SequentialBackend):
        setting = kit.setting(model, local, kind=kind, dropout=0.1)
        works = kit.works(setting)
        results[make] = kit.change(setting, make(setting).train(works, 2), works)
    for client, change in results[CohortBackend].items():
        assert kit.distance(change, results[SequentialBackend][client]) < FLOAT64
