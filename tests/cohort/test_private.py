"""DP-SGD in cohorts: against Opacus's engine, micro-batches of one, and one client at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from opacus import PrivacyEngine
from opacus.optimizers import DPOptimizer

from fedtune.adapters.layout import load_tensors
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.optimizer import StackedOptimizer
from fedtune.cohort.per_example import SAMPLERS, Made, Product, Recorder
from fedtune.cohort.plan import ClientWork, plan_work, sample_rate
from fedtune.cohort.private import mean_losses
from fedtune.cohort.stacked import StackedLoRA
from fedtune.cohort.together import CohortBackend
from fedtune.privacy.example import ExampleNoise
from fedtune.privacy.streams import Streams
from fedtune.scenario.local import LocalSection
from tests.cohort.kit import SIZES, bert, distance, gpt2, roberta, setting, stirred, vit

SGD = LocalSection(optimizer="sgd", lr=0.5, steps=3, batch_size=4)
KINDS = [(vit, "lora"), (vit, "ffa"), (vit, "lora-sb"), (bert, "lora"), (gpt2, "lora")]


def private_works(made, clip=0.3, multiplier=1.0, sizes=SIZES, server_round=1):
    """Clients of unequal size, noise and clipping bound, on streams that can be had again."""
    starts, streams, found = np.cumsum([0, *sizes]), Streams(4), []
    for client, size in enumerate(sizes):
        rate = sample_rate(size, made.local)
        z = multiplier * (1 + client / 4)
        noise = ExampleNoise(clip * (1 + client), z, rate, size * rate, streams,
                             (server_round, client))  # fmt: skip
        rows = np.arange(starts[client], starts[client] + size)
        found.append(plan_work(client, server_round, rows, stirred(made), made.local, 0,
                               made.data.widths(rows), noise=noise))  # fmt: skip
    return found


def flat(made, result):
    return made.layout.flatten(result.tensors)


def trained_by(backend_of, made, works):
    backend = backend_of(made)
    try:
        return [flat(made, result) for result in backend.train(works, 1)]
    finally:
        if isinstance(backend, CohortBackend):
            backend.close()


@pytest.mark.parametrize(("model", "kind"), KINDS, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("way", ["hooks", "ghost", "auto"])
def test_a_private_cohort_equals_each_client_alone_and_micro_batches_of_one(model, kind, way):
    made = replace(setting(model, SGD, kind=kind, dropout=0.1), per_example=way)
    works = private_works(made)
    together = trained_by(CohortBackend, made, works)
    alone = [trained_by(CohortBackend, made, [work])[0] for work in works]
    reference = trained_by(SequentialBackend, made, works)
    start = made.layout.flatten(stirred(made))
    for a, b, c in zip(together, alone, reference, strict=True):
        assert distance(a - start, b - start) <= 1e-10
        assert distance(a - start, c - start) <= (1e-10 if way == "hooks" else 1e-8)


def opacus_step(made, work, dtype):
    """One step of Opacus's own PrivacyEngine on the same batch, with noise given by us."""
    load_tensors(made.adapted.model, made.layout.specs, {**made.adapted.initial, **work.state})
    model, noise = made.adapted.model.train(), work.noise
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trained = [model.get_parameter(spec.parameter) for spec in made.layout.trained]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is one for one in trained))
    rows = np.concatenate(work.steps[0])
    batch = made.data.gather(torch.from_numpy(rows))
    optimizer = torch.optim.SGD(trained, made.local.lr)
    loader = torch.utils.data.DataLoader(range(len(rows)), batch_size=len(rows))
    wrapped, private, _ = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=noise.multiplier,
        max_grad_norm=noise.clip, poisson_sampling=False)  # fmt: skip
    assert isinstance(private, DPOptimizer)
    private.expected_batch_size = noise.divisor
    torch.nn.functional.cross_entropy(wrapped(**batch.inputs).logits, batch.labels).backward()
    drawn = noise.drawn(noise.stream(), made.layout.width, torch.zeros((), dtype=dtype))
    parts = iter(drawn.split([spec.size for spec in made.layout.trained]))

    def add_given_noise():
        for parameter in private.params:
            parameter.grad = (parameter.summed_grad + next(parts).view_as(parameter)).view_as(
                parameter
            )

    private.add_noise = add_given_noise
    private.step()
    return torch.cat([parameter.detach().reshape(-1) for parameter in trained])


@pytest.mark.parametrize(
    ("way", "dtype", "bound"),
    [
        ("hooks", torch.float64, 1e-10),
        ("ghost", torch.float64, 1e-8),
        ("auto", torch.float32, 1e-4),
    ],
)
@pytest.mark.parametrize("model", [vit, bert], ids=["vit", "bert"])
def test_a_step_equals_that_of_opacus_own_engine(model, way, dtype, bound):
    local = LocalSection(optimizer="sgd", lr=0.5, steps=1, batch_size=6)
    made = replace(setting(model, local, dtype=dtype), per_example=way)
    (work,) = private_works(made, clip=0.5, sizes=(12,))
    found = trained_by(CohortBackend, made, [work])[0]
    start = made.layout.flatten(work.state)
    fresh = setting(model, local, dtype=dtype)
    assert distance(found - start, opacus_step(fresh, work, dtype) - start) <= bound
    assert all(bool((found - start)[s].any()) for s in _slices(made))


def _slices(made):
    ends = np.cumsum([spec.size for spec in made.layout.trained])
    return [
        slice(end - spec.size, end) for end, spec in zip(ends, made.layout.trained, strict=True)
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_without_noise_and_bound_it_is_plain_training_on_the_same_batches(optimizer):
    local = LocalSection(optimizer=optimizer, lr=0.05, steps=3, batch_size=4, weight_decay=0.01)
    made = setting(roberta, local)
    undropped = [replace(w, dropout_key=None) for w in private_works(made, math.inf, 0.0)]
    works = [work for work in undropped if all(map(len, work.steps))]
    assert len(works) > 1
    private = trained_by(CohortBackend, made, works)
    for work, found in zip(works, private, strict=True):
        theta = made.layout.flatten(work.state).unsqueeze(0)
        plain, backend = StackedOptimizer(local, theta), CohortBackend(made)
        for parts in work.steps:
            rows = np.concatenate(parts)
            start = made.layout.split(theta[0].clone())
            one = ClientWork(work.client, start, ((rows,),), (1,), None, work.examples)
            mean = backend.gradient([one]) * (len(rows) / work.noise.divisor)
            plain.step(theta, mean, torch.tensor([[local.lr]], dtype=theta.dtype))
        backend.close()
        assert distance(found, theta[0]) <= 1e-12


def test_norms_and_sums_without_gradients_are_those_of_the_gradients():
    torch.manual_seed(0)
    left, right = torch.randn(6, 5, 4).double(), torch.randn(6, 5, 7).double()
    ghost, factors = Product(left, right), torch.rand(2, 3).double()
    made = ghost.made()
    one_by_one = torch.stack([torch.autograd.functional.jacobian(
        lambda w, x=x, g=g: ((x @ w.T) * g).sum(), torch.zeros(4, 7).double())
        for x, g in zip(right, left, strict=True)])  # fmt: skip
    assert torch.allclose(made.values, one_by_one, atol=1e-13)
    assert torch.allclose(ghost.squares(), made.squares(), rtol=1e-12)
    assert torch.allclose(ghost.total(factors), made.total(factors), rtol=1e-12)
    assert made.values.shape == (6, 4, 7)  # compact: an example's own client's slice


def test_an_empty_batch_is_a_step_of_noise_alone():
    made = setting(vit, SGD)
    works = [replace(work, steps=((), work.steps[1], ())) for work in private_works(made)]
    works[0] = replace(works[0], steps=((), (), ()))
    start = made.layout.flatten(stirred(made))
    for backend in (CohortBackend, SequentialBackend):
        found = trained_by(backend, made, works)
        noise, stream = works[0].noise, works[0].noise.stream()
        drawn = sum(noise.drawn(stream, len(start), start) for _ in range(3))
        assert distance(found[0] - start, -SGD.lr * drawn / noise.divisor) <= 1e-12


def test_an_example_whose_gradient_is_not_finite_counts_as_zero():
    made = setting(vit, SGD)
    made.data.inputs["pixel_values"][0] = math.nan
    (work,) = private_works(made, multiplier=0.0, sizes=(7,))
    bad, good = ((np.arange(4),),), ((np.arange(1, 4),),)
    found = [trained_by(CohortBackend, made, [replace(work, steps=one)])[0] for one in (bad, good)]
    assert bool(found[0].isfinite().all())
    assert distance(*found) <= 1e-12


def test_noise_has_its_variance_and_differs_between_clients_rounds_and_steps():
    streams, size = Streams(1), 200_000
    like = torch.zeros((), dtype=torch.float64)
    drawn = []
    for place in [(1, 0), (1, 1), (2, 0)]:
        noise = ExampleNoise(0.5, 3.0, 0.1, 1.0, streams, place)
        stream = noise.stream()
        drawn += [noise.drawn(stream, size, like) for _ in range(2)]
    rows = torch.stack(drawn)
    assert torch.allclose(rows.std(1), torch.full((6,), 1.5).double(), rtol=0.01)
    found = torch.corrcoef(rows) - torch.eye(6)
    assert float(found.abs().max()) < 5 / math.sqrt(size)
    again = ExampleNoise(0.5, 3.0, 0.1, 1.0, streams, (1, 0))
    assert torch.equal(again.drawn(again.stream(), size, like), drawn[0])
    secret = [ExampleNoise(0.5, 3.0, 0.1, 1.0, Streams(), (1, 0)) for _ in range(2)]
    one, other = (noise.drawn(noise.stream(), 100, like) for noise in secret)
    assert not torch.equal(one, other)


def test_batches_are_poisson_samples_of_the_rate():
    local = LocalSection(steps=4000, batch_size=5)
    made = setting(vit, local)
    (work,) = private_works(made, sizes=(30,))
    sizes = np.asarray([sum(map(len, step)) for step in work.steps])
    assert work.noise.rate == pytest.approx(1 / 6)
    assert abs(sizes.mean() - 5) < 4 * math.sqrt(30 / 6 * 5 / 6 / 4000)
    assert abs(sizes.var() - 30 / 6 * 5 / 6) < 0.4
    counts = np.bincount(np.concatenate([r for step in work.steps for r in step]), minlength=30)
    assert np.all(np.abs(counts / 4000 - 1 / 6) < 5 * math.sqrt(1 / 6 * 5 / 6 / 4000))
    assert all(
        len(np.unique(np.concatenate(step))) == sum(map(len, step)) for step in work.steps if step
    )


@pytest.mark.parametrize("bug", ["one tensor of noise left out", "one layer's gradient transposed"])
def test_a_planted_bug_is_found(bug, monkeypatch):
    made = replace(setting(vit, SGD), per_example="hooks")
    works = private_works(made)
    reference = trained_by(SequentialBackend, made, works)
    if bug.startswith("one tensor"):
        whole = ExampleNoise.drawn

        def partial(self, stream, size, like):
            noise = whole(self, stream, size, like)
            noise[: made.layout.trained[0].size] = 0.0
            return noise

        monkeypatch.setattr(ExampleNoise, "drawn", partial)
    else:
        true = SAMPLERS[StackedLoRA]

        def turned(layer, x, grad):
            found = dict(true(layer, x, grad))
            name = next(n for n in found if found[n].left.shape[2] == 16)
            one = found[name]
            turned = one.made().values.mT.reshape(len(x), *one.made().values.shape[1:])
            found[name] = Made(turned)
            return found

        monkeypatch.setitem(SAMPLERS, StackedLoRA, turned)
    found = trained_by(CohortBackend, made, works)
    start = made.layout.flatten(stirred(made))
    assert distance(found[0] - start, reference[0] - start) > 1e-3


def test_a_trained_tensor_without_samples_is_named():
    made = setting(vit, SGD)
    backend = CohortBackend(made)
    recorder = backend.binding.tap = Recorder()
    batch = made.data.gather(torch.arange(4))
    theta = made.layout.flatten(stirred(made)).unsqueeze(0)
    logits = backend.forward(made.layout, theta, backend.frozen, batch.inputs)
    backend.binding.tap = None
    mean_losses(made.objective, logits, batch.labels).sum().backward()
    with pytest.raises(NotImplementedError, match="no per-example gradient of other"):
        recorder.samples(["other"], "auto", torch.float64)
    backend.close()
