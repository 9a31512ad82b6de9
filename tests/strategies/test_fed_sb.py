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


def first_step_of(**changes) -> float:
    made = federation(local__steps=2, local__lr=0.004, **changes)
    assert made.strategy.opening is not None
    return made.strategy.opening.size


def test_the_first_step_counts_the_rounds_in_which_a_client_takes_part(tmp_path):
    """lr / (2 % of all of a client's steps), which are those of its own rounds."""
    whole = first_step_of(clients__participation__value=1.0, run__rounds=100)
    assert whole == pytest.approx(0.004 / (0.02 * 100 * 2))
    assert first_step_of(clients__participation__value=0.5, run__rounds=200) == whole
    bernoulli = {"kind": "bernoulli", "value": [0.25, 0.75, 0.5, 0.0, 0.5, 0.5]}
    of_the_five = first_step_of(clients__participation=bernoulli, run__rounds=200,
                                clients__partition={"kind": "iid"})  # fmt: skip
    assert of_the_five == pytest.approx(whole)
    trace = tmp_path / "trace.csv"
    lines = [f"{2 * turn + client % 2 + 1},{client}" for turn in range(2) for client in range(4)]
    trace.write_text("\n".join(["round,client", *lines]))
    drawn = {"kind": "trace", "file": str(trace)}
    assert first_step_of(clients__participation=drawn, run__rounds=200) == pytest.approx(whole)
    assert first_step_of(clients__participation__value=0.5, run__rounds=2) == 0.004


def test_the_first_step_counts_what_a_client_trains_on():
    """Not the examples that it holds out."""
    full = {"clients__participation__value": 1.0, "clients__partition": {"kind": "iid"},
            "task__train_examples": 240, "run__rounds": 100, "local__steps": None,
            "local__epochs": 1, "local__lr": 0.001}  # fmt: skip
    sizes = [federation(**full, clients__holdout=share).strategy.opening.size
             for share in (None, 0.5)]  # fmt: skip
    assert sizes == pytest.approx([0.001 / (0.02 * 100 * steps) for steps in (10, 5)])


@pytest.mark.parametrize(
    ("source", "clients", "answered", "examples"),
    [
        ("client-dense", 3, 3, 7),
        ("client-sketch", 3, 3, 7),
        ("pooled", 6, 0, 7),
        ("public", 0, 0, 20),
    ],
)
def test_the_opening_names_those_whose_examples_it_is_over(source, clients, answered, examples):
    options = {"adapter__init": source, "adapter__init_examples": 7, "task__server_examples": 20}
    made = federation(**options, clients__partition={"kind": "iid"})
    _, notes = opened(made)
    asked = made.strategy.participation.draw(range(6), 0)
    assert notes["clients"] == {0: [], 3: asked, 6: list(range(6))}[clients]
    assert notes["answered"] == notes["clients"][:answered]
    assert notes["examples"] == examples


def test_the_opening_of_a_private_run_speaks_of_noise_where_there_is_some():
    privacy = {"mechanism": "example", "noise_multiplier": 1.0, "delta": 1e-4}
    options = {"privacy": privacy, "task__server_examples": 20, "adapter__init_step": 0.01}
    said = [opened(federation(**options, adapter__init=source))[1]["revealed"]
            for source in ("public", "client-dense")]  # fmt: skip
    assert said[0] == "nothing of the clients"
    assert said[1].endswith("whole, with noise, from the ledger")


def test_the_opening_tells_who_of_the_asked_gave_no_gradient(monkeypatch):
    made = federation(adapter__init="client-sketch", faults__on_error="skip")
    real, asked = type(made.clients)._open, []

    def failing(self, client, message):
        asked.append(client)
        if client == min(asked) and asked.count(client) == 2:
            raise RuntimeError("no gradient this time")
        return real(self, client, message)

    monkeypatch.setattr(type(made.clients), "_open", failing)
    _, notes = opened(made)
    assert notes["clients"] == sorted(set(asked))
    assert notes["answered"] == notes["clients"][1:]


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
