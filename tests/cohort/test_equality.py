"""A cohort of K equals K cohorts of one equals the sequential backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedtune.cohort import folding, stacked, together
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.plan import plan_work
from fedtune.cohort.pull import Pull
from fedtune.cohort.stacked import adapted_layers
from fedtune.cohort.together import CohortBackend
from fedtune.scenario.local import EarlyStopping, LocalSection
from tests.cohort import kit

FLOAT64 = 1e-8
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "lr": 0.1},
    "momentum": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "clip": 0.5},
}


def three_rounds(make, setting, works, joined: bool):
    """Train each client for 3 rounds from its own last state; gives its change of round 3."""
    backend = make(setting)
    results = []
    for server_round in (1, 2, 3):
        if results:
            works = [
                plan_work(w.client, server_round, rows_of(w), r.tensors, setting.local, 0)
                for w, r in zip(works, results, strict=True)
            ]
        groups = [works] if joined else [[work] for work in works]
        results = [r for group in groups for r in backend.train(group, server_round)]
    return kit.change(setting, results, works), results


def rows_of(work):
    return np.unique(np.concatenate([b for step in work.steps for b in step]))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["lora", "ffa", "lora-sb"])
@pytest.mark.parametrize("head", ["shared", "frozen"])
def test_three_rounds_of_ragged_clients_agree_in_float64(name, kind, head):
    local = LocalSection(epochs=3, batch_size=3, **OPTIMIZERS[name])
    arguments = {"kind": kind, "head": head, "dropout": 0.2, "local": local}

    def changes(make, joined):
        setting = kit.setting(**arguments)
        return three_rounds(make, setting, kit.works(setting), joined)

    one_cohort, results = changes(CohortBackend, True)
    apart, _ = changes(CohortBackend, False)
    plain, plain_results = changes(SequentialBackend, False)
    for client in one_cohort:
        assert kit.distance(one_cohort[client], plain[client]) < FLOAT64
        assert kit.distance(one_cohort[client], apart[client]) < FLOAT64
    assert [r.steps for r in results] == [r.steps for r in plain_results] == [9, 12, 3, 9]
    losses = torch.tensor([r.loss for r in results])
    torch.testing.assert_close(losses, torch.tensor([r.loss for r in plain_results]))


@pytest.mark.parametrize("model", [kit.bert, kit.roberta, kit.gpt2])
@pytest.mark.parametrize("kind", ["lora", "ffa", "lora-sb"])
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


def test_clients_that_stop_early_agree():
    local = LocalSection(
        epochs=6, batch_size=4, lr=0.3, optimizer="sgd",
        early_stopping=EarlyStopping(patience=1, min_delta=0.05),
    )  # fmt: skip
    found = {}
    for make in (CohortBackend, SequentialBackend):
        setting = kit.setting(local=local)
        works = kit.works(setting)
        results = make(setting).train(works, 1)
        found[make] = (kit.change(setting, results, works), [r.steps for r in results])
    steps = found[CohortBackend][1]
    assert steps == found[SequentialBackend][1]
    assert any(s < len(w.steps) for s, w in zip(steps, works, strict=True))
    for client, change in found[CohortBackend][0].items():
        assert kit.distance(change, found[SequentialBackend][0][client]) < FLOAT64


def test_neither_order_nor_cohort_size_changes_a_client():
    local = LocalSection(epochs=2, batch_size=3, lr=0.01)
    changes = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        for size in (1, 2, 3, 4):
            setting = kit.setting(local=local, dropout=0.3)
            works = kit.works(setting)
            ordered = [works[i] for i in order]
            backend = CohortBackend(setting)
            groups = [ordered[i : i + size] for i in range(0, 4, size)]
            results = [r for group in groups for r in backend.train(group, 1)]
            changes.append(kit.change(setting, results, ordered))
    for other in changes[1:]:
        for client, change in other.items():
            assert kit.distance(change, changes[0][client]) < FLOAT64


def test_clients_that_start_from_different_states_agree():
    setting = kit.setting()
    states = [kit.stirred(setting, seed) for seed in range(4)]
    joined = CohortBackend(setting).train(kit.works(setting, states), 1)
    setting = kit.setting()
    works = kit.works(setting, states)
    alone = SequentialBackend(setting).train(works, 1)
    changes = kit.change(setting, joined, works), kit.change(setting, alone, works)
    for client in changes[0]:
        assert kit.distance(changes[0][client], changes[1][client]) < FLOAT64


@pytest.mark.parametrize(("name", "bound"), [("sgd", 1e-4), ("adam", 1e-3), ("adamw", 1e-3)])
def test_float32_stays_within_its_bounds_after_a_round(name, bound):
    local = LocalSection(epochs=2, batch_size=3, **OPTIMIZERS[name])
    found, gradients = {}, {}
    for make in (CohortBackend, SequentialBackend):
        setting = kit.setting(local=local, dtype=torch.float32)
        works, backend = kit.works(setting), make(setting)
        gradients[make] = backend.gradient(works)
        found[make] = kit.change(setting, backend.train(works, 1), works)
    assert kit.distance(gradients[CohortBackend], gradients[SequentialBackend]) < 1e-5
    for client, change in found[CohortBackend].items():
        assert kit.distance(change, found[SequentialBackend][client]) < bound


def test_bfloat16_trains_with_float32_adapters():
    local = LocalSection(epochs=3, batch_size=4, lr=0.1, optimizer="sgd")
    changes = {}
    for dtype in (torch.bfloat16, torch.float64):
        setting = kit.setting(local=local, dtype=dtype)
        works = kit.works(setting)
        results = CohortBackend(setting).train(works, 1)
        if dtype == torch.bfloat16:
            assert {t.dtype for r in results for t in r.tensors.values()} == {torch.float32}
        changes[dtype] = kit.change(setting, results, works)
    for client, change in changes[torch.bfloat16].items():
        assert kit.distance(change, changes[torch.float64][client]) < 0.05


@pytest.mark.parametrize("plant", ["dropout", "transpose", "leak", "padding", "scaling"])
def test_planted_bugs_are_caught(plant, monkeypatch):
    """Negative controls: each of these bugs must break the equality that the tests above hold."""
    local = LocalSection(epochs=2, batch_size=5, lr=0.01)
    setting = kit.setting(local=local, dropout=0.3)
    works = kit.works(setting)
    reference = kit.change(setting, SequentialBackend(setting).train(works, 1), works)
    if plant == "dropout":
        monkeypatch.setattr(stacked.CohortDropout, "forward", lambda self, x: x)
    elif plant == "transpose":
        monkeypatch.setattr(stacked, "_project", lambda rows, a: torch.bmm(rows, a.mT).flip(-1))
    elif plant == "leak":
        monkeypatch.setattr(
            together._Cohort,
            "_counts",
            lambda self, batch, valid: valid.sum().double().expand(len(valid)),
        )
    elif plant == "padding":
        real = folding.fold
        monkeypatch.setattr(folding, "fold", lambda b: (real(b)[0], real(b)[1] | True))
    else:
        real_forward = stacked.StackedLoRA.forward

        def doubled(self, x):
            self.scaling *= 1.01
            out = real_forward(self, x)
            self.scaling /= 1.01
            return out

        monkeypatch.setattr(stacked.StackedLoRA, "forward", doubled)
    setting = kit.setting(local=local, dropout=0.3)
    works = kit.works(setting)
    found = kit.change(setting, CohortBackend(setting).train(works, 1), works)
    assert max(kit.distance(found[c], reference[c]) for c in found) > 1e-4


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_pull_is_the_same_in_a_cohort_and_alone_and_touches_its_client_only(optimizer):
    local = LocalSection(epochs=2, batch_size=3, **OPTIMIZERS[optimizer])
    setting = kit.setting(local=local, dropout=0.2)
    plain = kit.works(setting)
    pulls = [
        None,
        Pull(kit.stirred(setting, 1), kit.stirred(setting, 2), 0.3),
        Pull(anchor=kit.stirred(setting, 4), strength=0.1),
        Pull(kit.stirred(setting, 5)),
    ]
    works = [replace(work, pull=pull) for work, pull in zip(plain, pulls, strict=True)]
    together_ = kit.change(setting, CohortBackend(setting).train(works, 1), works)
    setting = kit.setting(local=local, dropout=0.2)
    without = kit.change(setting, CohortBackend(setting).train(plain, 1), plain)
    setting = kit.setting(local=local, dropout=0.2)
    alone = kit.change(setting, SequentialBackend(setting).train(works, 1), works)
    for client in alone:
        assert kit.distance(together_[client], alone[client]) < FLOAT64
    assert torch.equal(together_[0], without[0])
    assert all(kit.distance(together_[k], without[k]) > 1e-3 for k in (1, 2, 3))


def test_one_step_of_a_pulled_client_is_the_step_of_its_penalised_loss():
    """SGD from θ: θ - η·(∇f(θ) + c + s·(θ - anchor))."""
    local = LocalSection(steps=1, batch_size=3, optimizer="sgd", lr=0.1)
    setting = kit.setting(local=local)
    (work, *_) = kit.works(setting)
    backend = CohortBackend(setting)
    linear, anchor = kit.stirred(setting, 1), kit.stirred(setting, 2)
    theta = setting.layout.flatten(work.state)
    expected = theta - 0.1 * (
        backend.gradient([work])[0]
        + setting.layout.flatten(linear)
        + 0.7 * (theta - setting.layout.flatten(anchor))
    )
    (result,) = backend.train([replace(work, pull=Pull(linear, anchor, 0.7))], 1)
    assert kit.distance(setting.layout.flatten(result.tensors), expected) < 1e-12


@pytest.mark.parametrize("factor", ["A", "B"])
@pytest.mark.parametrize("make", [CohortBackend, SequentialBackend])
def test_what_is_not_trained_this_time_stays_and_the_rest_is_trained_alike(make, factor):
    """One factor by turns (RoLoRA): `only` B is kind `ffa`, with the same A."""
    local = LocalSection(epochs=2, batch_size=3, optimizer="adamw", lr=0.05, weight_decay=0.1)
    setting = kit.setting(local=local, dropout=0.1)
    state = kit.stirred(setting)
    only = frozenset(n for n in state if f".lora_{factor}." not in n)
    works = [replace(w, only=only) for w in kit.works(setting, state=state)]
    results = make(setting).train(works, 1)
    assert all(set(r.tensors) == only for r in results)
    if factor == "B":
        return
    other = kit.setting(local=local, dropout=0.1, kind="ffa")
    frozen = {s.name: state[s.name] for s in other.layout.frozen}
    other.adapted.initial.update(frozen)
    twins = make(other).train(kit.works(other, state={n: state[n] for n in only}), 1)
    for one, twin in zip(results, twins, strict=True):
        for name in only:
            assert (
                kit.distance(one.tensors[name] - state[name], twin.tensors[name] - state[name])
                < FLOAT64
            )


def test_constants_of_a_state_take_the_place_of_the_initial_ones():
    """FedSVD's A of the round, on both backends, against the model that begins with it."""
    found = []
    for make in (CohortBackend, SequentialBackend):
        setting = kit.setting(kind="ffa")
        state = kit.stirred(setting)
        own = {
            s.name: 2.0 * setting.adapted.initial[s.name].double() for s in setting.layout.frozen
        }
        backend = make(setting)
        found.append(backend.gradient(kit.works(setting, state={**state, **own})))
        plain = backend.gradient(kit.works(setting, state=state)) if make is CohortBackend else None
        if plain is not None:
            assert kit.distance(found[0], plain) > 0.1
    assert kit.distance(*found) < FLOAT64


def test_a_base_that_moves_is_the_base_with_what_is_added():
    """W + s·ΔW on both backends, on BERT and on GPT-2, whose weights are transposed."""
    for model in (kit.bert, kit.gpt2):
        found = []
        for make in (CohortBackend, SequentialBackend):
            setting = kit.setting(model, delivers=("W",))
            state = kit.stirred(setting)
            torch.manual_seed(0)
            moved = {
                s.name: 0.05 * torch.randn(s.shape, dtype=torch.float64)
                for s in setting.layout.specs
                if s.role == "W"
            }
            assert moved
            backend = make(setting)
            rows = torch.arange(5)
            inputs = {k: v[rows] for k, v in setting.data.inputs.items()}
            still = backend.logits(state, inputs)
            with_it = backend.logits({**state, **moved}, inputs)
            zero = {name: torch.zeros_like(t) for name, t in moved.items()}
            assert torch.equal(backend.logits({**state, **zero}, inputs), still)
            found.append(with_it)
            name = next(iter(moved)).removesuffix(".base.weight")
            layer, scaling = adapted_layers(setting.adapted.model)[name]
            weight = layer.weight.detach().clone()
            backend.logits({**state, **moved}, inputs)
            step = layer.weight.detach() - weight
            step = step.T if model is kit.gpt2 else step
            torch.testing.assert_close(step, scaling * moved[f"{name}.base.weight"])
        torch.testing.assert_close(found[0], found[1])
        assert kit.distance(found[0], still) > 1e-3
