"""Activations computed again: the same gradients from less memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest
from torch.profiler import ProfilerActivity, profile

import fedtune
from fedtune.cohort.checkpointing import checkpoint_layers
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.sizing import MEMORY_SHARE, client_bytes
from fedtune.cohort.together import CohortBackend
from fedtune.errors import ScenarioError
from fedtune.scenario.local import LocalSection
from fedtune.tasks.conv import ConvConfig, ConvForImageClassification
from tests.cohort import kit
from tests.runs.kit import small

FLOAT64 = 1e-12
MODELS = [kit.vit, kit.swin, kit.bert, kit.gpt2]


@pytest.mark.parametrize("model", MODELS)
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
        assert bytes_kept[1] < 0.9 * bytes_kept[0]


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes that torch's allocator held at once, beyond those it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = seen.profiler.kineto_results.events()
    return max(accumulate(e.nbytes() for e in events if e.name() == "[memory]"))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_a_client_is_said_to_need_is_over_half_of_what_it_takes(model, checkpointed):
    """Half of the memory is left free for what is not measured, so a cohort then fits."""
    local = LocalSection(steps=1, batch_size=8, lr=0.01)
    setting = kit.setting(model, local)
    if checkpointed:
        checkpoint_layers(setting.adapted.model)
    backend, works = CohortBackend(setting), kit.works(setting, sizes=(8,) * 5)
    backend.gradient(works)
    one, five = (peak_of(lambda some=works[:k]: backend.gradient(some)) for k in (1, 5))
    said = client_bytes(backend, works[0])
    assert MEMORY_SHARE * (five - one) / 4 < said < 1.5 * (five - one) / 4


def test_a_run_has_it_by_a_key(tmp_path):
    overrides = small(engine__precision="float64")
    plain = fedtune.run("quickstart", overrides, tmp_path / "plain")
    key = {"engine.gradient_checkpointing": True}
    checked = fedtune.run("quickstart", {**overrides, **key}, tmp_path / "checked")
    assert checked.summary["final"]["loss"] == pytest.approx(plain.summary["final"]["loss"])


def test_a_model_without_layers_is_refused():
    with pytest.raises(ScenarioError, match="ConvForImageClassification has no layers"):
        checkpoint_layers(ConvForImageClassification(ConvConfig()))
