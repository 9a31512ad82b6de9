"""Fed-SB: the frame from a gradient of the base, what it costs, and that only R ever changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

import fedtune
from fedtune.apps.opening import some_rows
from fedtune.runs.build import build
from fedtune.runs.loop import ServerState, one_round, open_run, start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario
from fedtune.tasks.bases import base_path
from strategies import FedSB
from tests.runs.kit import small
from tests.strategies.kit import Federation

A, B, R = "m.layer.lora_A.weight", "m.layer.lora_B.weight", "m.layer.lora_R.weight"
SIZES = [30, 10, 20, 40]
ALL = {"clients__participation__value": 1.0, "adapter__init_examples": 10_000}


def federation(**changes):
    options = small(**{"strategy__name": "fed-sb", "engine__precision": "float64", **changes})
    return build(settle_paths(load_scenario("quickstart", options)))


class Notes:
    """Takes what is written of the opening."""

    def write_opening(self, found):
        self.found = found


def opened(made) -> tuple[ServerState, dict]:
    state, notes = start_state(made, None), Notes()
    with made.serving.serving():
        open_run(made, state, notes)
    return state, notes.found


def frames(arrays):
    """B, R and A of each layer."""
    names = [n.removesuffix(".lora_R.weight") for n in arrays if n.endswith(".lora_R.weight")]
    return {
        n: tuple(arrays[f"{n}.lora_{part}.weight"].double().cpu() for part in "BRA") for n in names
    }


def test_the_mean_of_r_is_the_mean_of_the_products_and_the_frame_stays():
    draw = np.random.default_rng(0)
    start = {A: draw.normal(size=(2, 5)), B: draw.normal(size=(7, 2)), R: draw.normal(size=(2, 2))}
    start = {n: torch.from_numpy(t) for n, t in start.items()}
    sent = {k: torch.from_numpy(draw.normal(size=(2, 2))) for k in range(4)}
    made = Federation(FedSB(), start, lambda client, came: {R: sent[client]}, 4, SIZES)
    new = made.go()
    p = np.asarray(SIZES) / sum(SIZES)
    wanted = sum(w * start[B] @ sent[k] @ start[A] for k, w in enumerate(p))
    torch.testing.assert_close(new[B] @ new[R] @ new[A], wanted)
    assert torch.equal(new[A], start[A])
    assert torch.equal(new[B], start[B])


def test_a_reply_with_a_frozen_factor_is_set_aside():
    start = {A: torch.zeros(2, 5), B: torch.zeros(7, 2), R: torch.zeros(2, 2)}
    strategy = FedSB()
    Federation(strategy, start, lambda client, came: came, 2).go()
    assert strategy.report.used == []
    assert "not asked for" in strategy.report.rejected[0]


def gradients_by_hand(made):
    """Σ p_k G_k of the plain base by torch.autograd, each client's examples as the opening's."""
    initial = made.adapted.initial
    model = AutoModelForImageClassification.from_pretrained(
        base_path("builtin:vit-letters"), num_labels=10, ignore_mismatched_sizes=True
    )
    model = model.double().eval()
    for name, parameter in model.classifier.named_parameters():
        parameter.data = initial[f"base_model.model.classifier.{name}"].double()
    weights = {
        name: model.get_submodule(name.removeprefix("base_model.model.")).weight
        for name in frames(initial)
    }
    total: dict[str, torch.Tensor] = {}
    count = 0
    for client in made.task.clients.eligible:
        rows = some_rows(made.clients.training_rows(client), made.scenario.adapter.init_examples,
                         made.scenario.run.seed, client)  # fmt: skip
        batch = made.task.train.gather(torch.from_numpy(rows))
        for weight in weights.values():
            weight.requires_grad_(True)
        logits = model(**batch.inputs).logits
        loss = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
        for name, gradient in zip(
            weights, torch.autograd.grad(loss, list(weights.values())), strict=True
        ):
            total[name] = total.get(name, 0.0) + gradient
        count += len(rows)
    return {name: gradient / count for name, gradient in total.items()}


def test_the_dense_opening_is_the_svd_of_the_first_step_of_the_clients_mean_gradient():
    made = federation(**ALL, adapter__init="client-dense", adapter__init_step=0.01)
    state, _ = opened(federation(**ALL, adapter__init="client-dense", adapter__init_step=0.01))
    wanted = gradients_by_hand(made)
    for name, (b, r, a) in frames(state.arrays).items():
        step = -0.01 * np.sign(wanted[name].detach().numpy())
        u, s, v = np.linalg.svd(step, full_matrices=False)
        np.testing.assert_allclose(b @ r @ a, (u[:, :2] * s[:2]) @ v[:2], atol=1e-9)
        np.testing.assert_allclose(b.T @ b, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(a @ a.T, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(r, np.diag(np.diag(r)), atol=0)


def test_pooled_is_dense_when_all_clients_send_all():
    dense, _ = opened(federation(**ALL, adapter__init="client-dense"))
    pooled, notes = opened(federation(**ALL, adapter__init="pooled"))
    for one, other in zip(
        frames(dense.arrays).values(), frames(pooled.arrays).values(), strict=True
    ):
        torch.testing.assert_close(one[0] @ one[1] @ one[2], other[0] @ other[1] @ other[2])
    assert notes["bytes_up"] == notes["bytes_down"] == 0
    assert "simulation only" in notes["revealed"]


def test_the_sketch_finds_nearly_the_best_subspace_of_the_gradient():
    state, notes = opened(federation(**ALL))
    made = federation(**ALL)
    inside, best = 0.0, 0.0
    for name, gradient in gradients_by_hand(made).items():
        b, _, a = frames(state.arrays)[name]
        inside += float((b.T @ gradient @ a.T).square().sum())
        best += float(torch.linalg.svdvals(gradient.detach())[:2].square().sum())
    assert 0.9 * best <= inside <= best
    layers, width, clients = 8, 10, len(notes["clients"])
    assert notes["bytes_up"] == 8 * layers * width * 2 * 64 * clients
    assert notes["bytes_down"] == 8 * layers * width * 64 * clients
    assert "products" in notes["revealed"]


def test_without_the_opening_only_the_frame_differs():
    random = start_state(federation(adapter__init="random"), None)
    state, _ = opened(federation())
    names = set(random.arrays)
    assert not any("lora_A" in n or "lora_B" in n for n in names)
    for name in names:
        assert ("lora_R" in name) or torch.equal(random.arrays[name], state.arrays[name])
        if "lora_R" in name:
            assert float(random.arrays[name].abs().max()) == 0


def test_the_frame_never_changes_after_the_opening():
    made = federation(run__rounds=3)
    state, _ = opened(made)
    before = {n: t.clone() for n, t in state.arrays.items()}
    with made.serving.serving():
        for number in (1, 2, 3):
            one_round(made, state, number)
    for name, tensor in state.arrays.items():
        frozen = "lora_A" in name or "lora_B" in name
        assert torch.equal(tensor, before[name]) == frozen, name


def test_the_run_says_what_its_opening_cost_and_revealed(tmp_path):
    done = fedtune.run("quickstart", small(strategy__name="fed-sb"), tmp_path / "run")
    written = json.loads((tmp_path / "run" / "opening.json").read_text())
    assert done.summary["opening"] == written
    assert {"source", "revealed", "clients", "bytes_up", "bytes_down"} <= set(written)
    assert done.scenario.adapter.init == "client-sketch"
    assert done.scenario.adapter.alpha == done.scenario.adapter.rank
    planned = fedtune.plan("quickstart", small(strategy__name="fed-sb"))
    assert planned.opening_bytes_up == written["bytes_up"]
    assert planned.opening_bytes_down == written["bytes_down"]


@pytest.mark.parametrize("kind", ["cohort", "sequential"])
def test_the_opening_leaves_the_base_as_it_was(kind):
    made = federation(engine__kind=kind)
    before = {n: p.detach().clone() for n, p in made.adapted.model.named_parameters()
              if "lora" not in n}  # fmt: skip
    opened(made)
    for name, parameter in made.adapted.model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name])
            assert parameter.grad is None
            assert parameter.requires_grad == ("modules_to_save" in name), name


def test_layers_of_unlike_width_are_sketched_each_as_wide_as_it_can(tmp_path):
    """Grouped queries: v is narrower than q, and than rank + 8."""
    options = {
        "task.kind": "causal-lm", "task.base": "builtin:llama-words", "task.data": "builtin:sums",
        "strategy.name": "fed-sb", "adapter.rank": 20, "clients.count": 4, "local.epochs": None,
        "local.steps": 1, "local.batch_size": 2, "clients.partition": {"kind": "iid"},
        "clients.participation.value": 1.0, "run.rounds": 1, "adapter.init_examples": 4,
        "engine.threads": 1, "task.train_examples": 60, "task.test_examples": 20,
    }  # fmt: skip
    made = build(settle_paths(load_scenario("quickstart", options)))
    widths = {min(s.shape) for s in made.adapted.layout.specs if s.role == "B"}
    assert made.strategy.opening is not None
    shapes = set(made.strategy.opening.shapes.values())
    assert len({min(28, *shape) for shape in shapes}) > 1, (shapes, widths)
    state, notes = opened(made)
    for b, _, a in frames(state.arrays).values():
        np.testing.assert_allclose(b.T @ b, np.eye(20), atol=1e-5)
        np.testing.assert_allclose(a @ a.T, np.eye(20), atol=1e-5)
    down, up = made.strategy.opening.numbers(20)
    assert notes["bytes_up"] == 4 * up * 4
    assert notes["bytes_down"] == 4 * down * 4
