"""SCAFFOLD and FedProx against restatements, with real local training of a small model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fedtune
from fedtune.apps.rounds import ClientView, Train
from fedtune.cohort.plan import ClientResult
from fedtune.runs.build import build
from fedtune.runs.checkpoints import load_checkpoint
from fedtune.scenario.local import LocalSection
from strategies import SCAFFOLD, FedAvg
from strategies.scaffold import CONTROL, scaffold_round
from tests.runs.kit import adapter_bytes, lines, small
from tests.strategies.kit import Federation

N, D, STEPS, RATE = 4, 3, 5, 0.05
LAYOUT = SimpleNamespace(
    trained=(SimpleNamespace(name="x"),), sent=(SimpleNamespace(name="x"),), kept=()
)
SGD = LocalSection(optimizer="sgd", lr=RATE, steps=STEPS)


class Quadratics:
    """Clients with f_k(x) = ½(x - m_k)ᵀ D_k (x - m_k) and plain gradient steps."""

    def __init__(self, gradient=False, seed=0, local=SGD):
        draw = np.random.default_rng(seed)
        self.centre, self.curve = draw.normal(size=(N, D)), draw.uniform(0.5, 3.0, (N, D))
        self.kept = {k: {} for k in range(N)}
        self.option, self.local = gradient, local

    def gradient(self, k, x):
        return self.curve[k] * (x - self.centre[k])

    def __call__(self, k, came):
        extra = {n: t for n, t in came.items() if n != "x"}
        config = {"gradient": self.option}
        view = ClientView(
            k, 1, {"x": came["x"]}, extra, self.kept[k], config, LAYOUT, {}, self.local
        )
        going, result = scaffold_round(view), None
        while True:
            try:
                job = going.send(result)
            except StopIteration as end:
                return end.value.sent
            x = job.state["x"].numpy().copy()
            if not isinstance(job, Train):
                result = {"x": torch.from_numpy(self.gradient(k, x))}
                continue
            for _ in range(STEPS):
                x -= RATE * (self.gradient(k, x) + job.pull.linear["x"].numpy())
            result = ClientResult(k, {"x": torch.from_numpy(x)}, 0.0, STEPS, 1, STEPS * RATE)


def oracle(clients, option, rounds, taking_part=range(N)):
    """Algorithm 1 of the paper, with global step size 1."""
    x, c, own = np.zeros(D), np.zeros(D), np.zeros((N, D))
    for _ in range(rounds):
        ys, new = {}, {}
        for k in taking_part:
            y = x.copy()
            for _ in range(STEPS):
                y = y - RATE * (clients.gradient(k, y) - own[k] + c)
            gradient = clients.gradient(k, x)
            new[k] = gradient if option == 1 else own[k] - c + (x - y) / (STEPS * RATE)
            ys[k] = y
        x = x + np.mean([ys[k] - x for k in taking_part], 0)
        c = c + sum(new[k] - own[k] for k in taking_part) / N
        for k in taking_part:
            own[k] = new[k]
    return x, c, own


@pytest.mark.parametrize(("gradient", "option"), [(False, 2), (True, 1)])
def test_rounds_are_those_of_algorithm_1(gradient, option):
    clients = Quadratics(gradient)
    start = {"x": torch.zeros(D, dtype=torch.float64)}
    made = Federation(SCAFFOLD(gradient=gradient), start, clients, N)
    for _ in range(6):
        made.go()
    x, c, own = oracle(clients, option, 6)
    np.testing.assert_allclose(made.model["x"], x, atol=1e-12)
    np.testing.assert_allclose(made.strategy.control["x"], c, atol=1e-12)
    for k in range(N):
        np.testing.assert_allclose(clients.kept[k][CONTROL + "x"], own[k], atol=1e-12)


def test_the_variates_take_the_drift_out():
    """With unequal curvatures FedAvg ends beside the minimum, SCAFFOLD at it."""
    clients = Quadratics()
    optimum = (clients.curve * clients.centre).sum(0) / clients.curve.sum(0)
    start = {"x": torch.zeros(D, dtype=torch.float64)}
    made = Federation(SCAFFOLD(), start, clients, N)
    for _ in range(200):
        made.go()

    def plain(k, came):
        x = came["x"].numpy().copy()
        for _ in range(STEPS):
            x -= RATE * clients.gradient(k, x)
        return {"x": torch.from_numpy(x)}

    beside = Federation(FedAvg(), start, plain, N)
    for _ in range(200):
        beside.go()
    assert np.abs(made.model["x"].numpy() - optimum).max() < 1e-9
    assert np.abs(beside.model["x"].numpy() - optimum).max() > 1e-2


def test_the_servers_variate_is_the_mean_of_the_clients():
    clients = Quadratics()
    start = {"x": torch.zeros(D, dtype=torch.float64)}
    made = Federation(SCAFFOLD(fraction_train=0.5, seed=3), start, clients, N)
    for _ in range(15):
        made.go()
    kept = [
        k.get(CONTROL + "x", torch.zeros(D, dtype=torch.float64)) for k in clients.kept.values()
    ]
    torch.testing.assert_close(made.strategy.control["x"], torch.stack(kept).mean(0))


def test_with_adam_the_variates_are_gradients():
    """(x - y)/Ση of Adam's steps is no gradient, so option I is taken."""
    clients = Quadratics(local=LocalSection(optimizer="adam", steps=STEPS))
    start = {"x": torch.zeros(D, dtype=torch.float64)}
    made = Federation(SCAFFOLD(), start, clients, N)
    made.go()
    for k in range(N):
        np.testing.assert_allclose(
            clients.kept[k][CONTROL + "x"], clients.gradient(k, np.zeros(D)), atol=1e-12
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_whole_run_is_the_same_on_both_engines_and_sends_twice_as_much(tmp_path, optimizer):
    options = small(
        strategy__name="scaffold", local__optimizer=optimizer, engine__precision="float64",
        clients__participation__value=0.5,
    )  # fmt: skip
    together = fedtune.run("quickstart", options, tmp_path / "a")
    apart = fedtune.run("quickstart", {**options, "engine.kind": "sequential"}, tmp_path / "b")
    for a, b in zip(together.metrics, apart.metrics, strict=True):
        assert abs(a["eval"]["loss"] - b["eval"]["loss"]) <= 1e-6
    plain = fedtune.run("quickstart", {**options, "strategy.name": "fedavg"}, tmp_path / "c")
    for a, b in zip(together.metrics, plain.metrics, strict=True):
        assert a["bytes_up"] == 2 * b["bytes_up"]
        assert a["bytes_down"] == 2 * b["bytes_down"]


def test_fedprox_with_mu_0_is_fedavg_to_the_bit(tmp_path):
    runs = [
        fedtune.run("quickstart", small(**options), tmp_path / name)
        for name, options in (
            ("prox", {"strategy__name": "fedprox", "strategy__mu": 0.0}),
            ("avg", {"strategy__name": "fedavg"}),
        )
    ]
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1])
    assert [line["eval"] for line in lines(runs[0])] == [line["eval"] for line in lines(runs[1])]


def test_a_larger_mu_keeps_clients_nearer(tmp_path):
    """‖θ - θ⁰‖ after a round falls as μ grows, and tends to 0."""
    from safetensors.torch import load_file

    moved = []
    for mu in (0.0, 1.0, 100.0):
        options = small(
            strategy__name="fedprox", strategy__mu=mu, run__rounds=1, local__steps=20,
            local__optimizer="sgd", local__lr=0.01, adapter__kind="ffa",
        )  # fmt: skip
        done = fedtune.run("quickstart", options, tmp_path / str(mu))
        saved = load_file(done.adapter / "adapter_model.safetensors")
        moved.append(sum(float(t.square().sum()) for n, t in saved.items() if "lora_B" in n))
    assert moved[0] > 1.05 * moved[1] > 1.05 * 2 * moved[2] > 0


def test_a_head_of_its_own_has_no_variate(tmp_path):
    """It would only ever be pulled back: the server has no mean of heads to add."""
    options = small(strategy__name="scaffold", task__head="local", local__optimizer="sgd")
    done = fedtune.run("quickstart", options, tmp_path / "run")
    made = build(done.scenario, done.read_partition())
    found = load_checkpoint(done.checkpoints)
    variates = [t for n, t in found.groups["clients"].items() if CONTROL in n and "classifier" in n]
    others = [t for n, t in found.groups["clients"].items() if CONTROL in n and "lora" in n]
    assert variates
    assert all(float(t.abs().max()) == 0 for t in variates)
    assert any(float(t.abs().max()) > 0 for t in others)
    assert made.adapted.layout.kept
