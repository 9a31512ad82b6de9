"""Cohort layout, failures with a name, out-of-memory, and the choice of backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedtune.cohort.engine import Engine, Resolved, cohorts
from fedtune.cohort.folding import fold
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.plan import ClientResult, ClientWork
from fedtune.cohort.probe import choose_backend
from fedtune.cohort.sizing import client_bytes
from fedtune.cohort.together import CohortBackend
from fedtune.errors import ClientFailure, RunError
from fedtune.scenario.local import LocalSection
from tests.cohort import kit


def engine(setting, size="auto", seen=None) -> Engine:
    seen = [] if seen is None else seen
    backend = CohortBackend(setting)
    resolved = Resolved(backend.name, "cpu", 1)
    return Engine(backend, setting, resolved, size, lambda r: seen.append(r.to_dict()))


def test_cohorts_are_a_pure_function_of_the_work():
    setting = kit.setting(local=LocalSection(batch_size=3, epochs=1))
    works = kit.works(setting, sizes=(7, 12, 3, 9, 9))
    dealt = cohorts(works, 2)
    assert [[w.client for w in c] for c in dealt] == [[1, 0], [3, 4], [2]]
    shuffled = cohorts(works[::-1], 2)
    assert [[w.client for w in c] for c in shuffled] == [[w.client for w in c] for c in dealt]


def test_folding_pads_with_real_rows_that_do_not_count():
    rows, valid = fold([np.array([5, 6, 7]), np.array([9]), np.empty(0, dtype=np.int64)])
    assert rows.tolist() == [[5, 6, 7], [9, 9, 9], [5, 5, 5]]
    assert valid.sum(1).tolist() == [3, 1, 0]


def test_out_of_memory_halves_and_trains_the_round_again():
    setting = kit.setting(local=LocalSection(batch_size=3, epochs=1))
    runner, works = engine(setting, 4), kit.works(setting)
    real, tried = runner.backend.train, []

    def small_only(cohort, server_round):
        tried.append(len(cohort))
        if len(cohort) > 1:
            raise torch.OutOfMemoryError("full")
        return real(cohort, server_round)

    runner.backend.train = small_only
    done = runner.train(works, 3)
    assert tried == [4, 2, 1, 1, 1, 1]
    assert runner.resolved.sizes == [(1, 4), (3, 2), (3, 1)]
    assert runner.resolved.size(1) == 4
    assert runner.resolved.size(3) == 1
    assert all(isinstance(result, ClientResult) for result in done.values())


def test_a_failing_client_is_named_and_costs_no_other_client():
    setting = kit.setting(local=LocalSection(batch_size=3, epochs=1))
    works = kit.works(setting)
    reference = {r.client: r for r in CohortBackend(setting).train(works, 1)}
    setting = kit.setting(local=LocalSection(batch_size=3, epochs=1))
    works = kit.works(setting)
    missing = np.array([10**6])
    works[2] = ClientWork(2, works[2].state, ((missing,),), (1,), 0, 1)
    done = engine(setting, 4).train(works, 1)
    assert isinstance(done[2], ClientFailure)
    assert done[2].client == 2
    assert done[2].stage == "train"
    for client in (0, 1, 3):
        for name, tensor in reference[client].tensors.items():
            torch.testing.assert_close(done[client].tensors[name], tensor)


def test_auto_size_measures_a_client_and_is_stored():
    seen: list = []
    setting = kit.setting()
    works = kit.works(setting)
    runner = engine(setting, "auto", seen)
    runner.train(works, 1)
    assert seen == [runner.resolved.to_dict()]
    assert runner.resolved.sizes[0][1] >= 1
    assert Resolved.from_dict(runner.resolved.to_dict()) == runner.resolved


def test_client_bytes_grow_with_the_batch():
    def measured(batch):
        setting = kit.setting(local=LocalSection(batch_size=batch, epochs=1))
        return client_bytes(CohortBackend(setting), kit.works(setting, sizes=(32,))[0])

    small, large = measured(4), measured(16)
    assert 2 < large / small <= 4.2


class Coupled(nn.Module):
    """Adds the batch's mean to every example, as train-mode batch normalisation would."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        out = self.inner(x)
        return out + out.mean(0, keepdim=True)


@pytest.mark.parametrize("couple", [False, True])
def test_the_probe_finds_models_that_couple_examples(couple):
    setting = kit.setting()
    if couple:
        layer = setting.adapted.model.base_model.model.vit.layers[0].mlp
        layer.fc1 = Coupled(layer.fc1)
    backend, reason = choose_backend(setting, "cohort", np.arange(8))
    assert backend.name == ("sequential" if couple else "cohort")
    assert (reason is None) != couple


def test_a_trained_layer_without_a_stacked_form_falls_back():
    setting = kit.setting()
    wrapper = setting.adapted.model.base_model.model.classifier
    wrapper.modules_to_save["default"] = nn.Sequential(
        wrapper.modules_to_save["default"], nn.PReLU(dtype=torch.float64)
    )
    changed = kit.laid_out_again(setting)
    backend, reason = choose_backend(changed, "cohort", np.arange(8))
    assert backend.name == "sequential"
    assert "PReLU" in reason


def test_head_dropout_survives_the_probe():
    """The probe must not leave the head's dropout with a stranger's keys."""
    setting = kit.setting(kit.roberta, local=LocalSection(epochs=2, batch_size=3, lr=0.01))
    backend, reason = choose_backend(setting, "cohort", np.arange(8))
    assert (backend.name, reason) == ("cohort", None)
    works = kit.works(setting)
    found = kit.change(setting, backend.train(works, 1), works)
    reference = kit.setting(kit.roberta, local=setting.local)
    plain = kit.change(reference, SequentialBackend(reference).train(works, 1), works)
    for client, change in found.items():
        assert kit.distance(change, plain[client]) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("model", [kit.vit, kit.roberta])
def test_a_frozen_head_trains_alike_with_its_dropout_off(model, dtype):
    setting = kit.setting(model, head="frozen", dtype=dtype)
    backend, reason = choose_backend(setting, "cohort", np.arange(8))
    assert (backend.name, reason) == ("cohort", None)
    assert all(np.isfinite(r.loss) for r in backend.train(kit.works(setting), 1))


def test_measuring_a_client_gives_the_same_number_again():
    setting = kit.setting(local=LocalSection(batch_size=4, accumulation=2, epochs=1))
    backend, works = CohortBackend(setting), kit.works(setting)
    assert len({client_bytes(backend, works[1]) for _ in range(5)}) == 1


def test_a_halving_is_never_undone_by_a_later_entry():
    resolved = Resolved("cohort", "cpu", 1, [(1, 32), (7, 8), (6, 16)])
    assert [resolved.size(r) for r in (5, 6, 7, 8)] == [32, 16, 8, 8]


def test_out_of_memory_with_one_client_is_a_line_not_a_traceback():
    setting = kit.setting(local=LocalSection(batch_size=3, epochs=1))
    runner = engine(setting, 1)

    def full(cohort, server_round):
        raise torch.OutOfMemoryError("full")

    runner.backend.train = full
    with pytest.raises(RunError, match=r"lower local\.batch_size"):
        runner.train(kit.works(setting), 1)


class Unbatched(nn.Module):
    """Calls its trained layer on a table without a batch dimension, as Swin v2's biases do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        table = torch.ones(7, x.shape[-1], dtype=x.dtype)
        return self.layer(x) + self.layer(table).mean()


def test_a_model_that_cannot_be_folded_falls_back():
    setting = kit.setting(targets=["fc1"])
    block = setting.adapted.model.base_model.model.vit.layers[0].mlp
    block.fc1 = Unbatched(block.fc1)
    changed = kit.laid_out_again(setting)
    backend, reason = choose_backend(changed, "cohort", np.arange(8))
    assert backend.name == "sequential"
    assert "folded" in reason
    assert all(np.isfinite(r.loss) for r in backend.train(kit.works(changed), 1))


def test_out_of_memory_while_measuring_is_a_line(monkeypatch):
    setting = kit.setting()
    runner = engine(setting)

    def full(works, step):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(runner.backend, "gradient", full)
    with pytest.raises(RunError, match=r"lower local\.batch_size"):
        runner.train(kit.works(setting), 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_a_gpu():
    local = LocalSection(epochs=2, batch_size=3, lr=0.01)
    changes = []
    for device in ("cpu", "cuda"):
        setting = kit.setting(local=local, dropout=0.2, device=device)
        works = kit.works(setting)
        results = CohortBackend(setting).train(works, 1)
        changes.append(kit.change(setting, results, works))
    for client, change in changes[1].items():
        assert kit.distance(change.cpu(), changes[0][client]) < 1e-8
