"""What each method converges to, on quadratics of clients with unequal data (docs/methods)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedtune.apps.rounds import ClientView, Train
from fedtune.cohort.plan import ClientResult
from fedtune.participation import Participation
from fedtune.rules.weights import policy_counts
from fedtune.runs.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from fedtune.scenario.local import LocalSection
from strategies import ADMM, RERCE, SCAFFOLD, FedAvg, FedAvgUnbiased, FedProx, FedStale, FedVARP
from tests.strategies.kit import Federation

N, D = 5, 3
SIZES, MOST = [3, 40, 11, 200, 7], 30
POLICIES = ("uniform", "reported", "capped")
LAYOUT = SimpleNamespace(
    trained=(SimpleNamespace(name="x"),), sent=(SimpleNamespace(name="x"),), kept=()
)
DRAW = np.random.default_rng(7)
CENTRE, CURVE = DRAW.normal(size=(N, D)), DRAW.uniform(1.0, 3.0, (N, D))
START = {"x": torch.zeros(D, dtype=torch.float64)}


def weights(policy):
    counts = policy_counts(policy, SIZES, MOST).numpy()
    return counts / counts.sum()


def optimum(policy, more=1.0):
    """Where Σ_k p_k · more_k · ∇f_k = 0, f_k(x) = ½(x - m_k)ᵀ D_k (x - m_k)."""
    p = weights(policy)[:, None] * np.reshape(more, (-1, 1)) * CURVE
    return (p * CENTRE).sum(0) / p.sum(0)


class Clients:
    """Do a method's round by `steps` gradient steps each, or exactly where these are None."""

    def __init__(self, strategy, steps=(1,) * N, rate=0.2):
        self.strategy, self.steps, self.rate = strategy, steps, rate
        self.kept = {k: {} for k in range(N)}
        self.rounds = dict.fromkeys(range(N), 0)

    def gradient(self, k, x):
        return CURVE[k] * (x - CENTRE[k])

    def do(self, k, job):
        x = job.state["x"].numpy().copy()
        if not isinstance(job, Train):
            return {"x": torch.from_numpy(self.gradient(k, x))}
        pull = job.pull
        linear = pull.linear["x"].numpy() if pull and pull.linear else 0.0
        strength = pull.strength if pull and pull.anchor else 0.0
        anchor = pull.anchor["x"].numpy() if strength else 0.0
        if self.steps is None:
            x = (CURVE[k] * CENTRE[k] - linear + strength * anchor) / (CURVE[k] + strength)
            return ClientResult(k, {"x": torch.from_numpy(x)}, 0.0, 1, 1)
        for _ in range(self.steps[k]):
            x -= self.rate * (self.gradient(k, x) + linear + strength * (x - anchor))
        rates = self.rate * self.steps[k]
        return ClientResult(k, {"x": torch.from_numpy(x)}, 0.0, self.steps[k], 1, rates)

    def __call__(self, k, came):
        self.rounds[k] += 1
        extra = {n: t for n, t in came.items() if n != "x"}
        local = LocalSection(optimizer="sgd", lr=self.rate, steps=1)
        view = ClientView(k, self.rounds[k], {"x": came["x"]}, extra, self.kept[k],
                          self.strategy.client_config(), LAYOUT, START, local)  # fmt: skip
        going, result = type(self.strategy).client_round(view), None
        while True:
            try:
                result = self.do(k, going.send(result))
            except StopIteration as end:
                return dict(end.value.sent)


def reached(strategy, rounds, **how):
    """The model after so many rounds."""
    clients = Clients(strategy, **how)
    made = Federation(strategy, START, clients, N, SIZES)
    for _ in range(rounds):
        made.go()
    return made.model["x"].numpy(), made


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("method", [FedAvg, FedProx, SCAFFOLD])
def test_with_one_step_a_client_it_is_the_sum_by_the_weights(method, policy):
    found, _ = reached(method(weights=policy, max_weight=MOST), 90)
    np.testing.assert_allclose(found, optimum(policy), atol=1e-7)
    others = [optimum(other) for other in POLICIES if other != policy]
    assert min(np.abs(found - other).max() for other in others) > 0.05


@pytest.mark.parametrize("method", [FedAvg, FedProx, SCAFFOLD])
def test_by_default_it_is_the_sum_over_all_examples(method):
    np.testing.assert_allclose(reached(method(), 90)[0], optimum("reported"), atol=1e-7)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("gradient", [False, True])
def test_scaffold_minimises_it_whatever_clients_do(policy, gradient):
    """Unequal numbers of steps leave FedAvg beside it."""
    steps = (1, 4, 2, 7, 3)
    made = SCAFFOLD(gradient=gradient, weights=policy, max_weight=MOST)
    found, _ = reached(made, 250, steps=steps, rate=0.05)
    np.testing.assert_allclose(found, optimum(policy), atol=1e-6)
    beside, _ = reached(FedAvg(weights=policy, max_weight=MOST), 250, steps=steps, rate=0.05)
    assert np.abs(beside - optimum(policy)).max() > 0.02


@pytest.mark.parametrize("policy", POLICIES)
def test_scaffold_minimises_it_whoever_takes_part(policy):
    made = SCAFFOLD(weights=policy, max_weight=MOST, fraction_train=0.4, seed=5)
    found, _ = reached(made, 500, steps=(1, 3, 2, 4, 2), rate=0.05)
    np.testing.assert_allclose(found, optimum(policy), atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_servers_variate_is_the_weighted_sum_of_the_clients(policy):
    """From the round on in which the last client was first heard of."""
    made = SCAFFOLD(weights=policy, max_weight=MOST, fraction_train=0.4, seed=1)
    clients = Clients(made)
    federation, heard = Federation(made, START, clients, N, SIZES), set()
    for _ in range(15):
        federation.go()
        heard |= set(made.report.used)
        kept = np.stack([clients.kept[k].get("control/x", torch.zeros(D)) for k in range(N)])
        counts = policy_counts(policy, SIZES, MOST).numpy()
        known = np.asarray([counts[k] if k in heard else 0.0 for k in range(N)])
        whole = N * known.sum() / len(heard)
        np.testing.assert_allclose(made.control["x"], (known / whole) @ kept, atol=1e-12)
    assert len(heard) == N
    np.testing.assert_allclose(made.control["x"], weights(policy) @ kept, atol=1e-12)


def test_with_rules_that_give_each_client_a_vote_variates_are_averaged_alike():
    for more in ({"rule": "median"}, {"pre": ["clip"]}):
        made = SCAFFOLD(**more)
        clients = Clients(made)
        federation = Federation(made, START, clients, N, SIZES)
        for _ in range(4):
            federation.go()
        kept = np.stack([clients.kept[k]["control/x"] for k in range(N)])
        assert made.policy == "uniform"
        np.testing.assert_allclose(made.control["x"], kept.mean(0), atol=1e-12)


def test_what_scaffold_remembers_goes_on_to_the_bit(tmp_path):
    whole = reached(SCAFFOLD(fraction_train=0.4, seed=2), 12)[1]
    first = reached(SCAFFOLD(fraction_train=0.4, seed=2), 5)[1]
    again = SCAFFOLD(fraction_train=0.4, seed=2)
    save_checkpoint(tmp_path, Checkpoint(5, {"strategy": first.strategy.state_dict()}))
    again.load_state_dict(load_checkpoint(tmp_path).groups["strategy"])
    clients = Clients(again)
    clients.kept = first.clients.answer.kept
    later = Federation(again, first.model, clients, N, SIZES)
    later.round = 5
    for _ in range(7):
        later.go()
    assert torch.equal(later.model["x"], whole.model["x"])
    assert torch.equal(again.control["x"], whole.strategy.control["x"])


@pytest.mark.parametrize("policy", POLICIES)
def test_fedavg_counts_a_client_by_its_steps_too(policy):
    """Objective inconsistency (Wang et al., 2020): p_k τ_k for small rates."""
    steps, rate = np.asarray([1, 4, 2, 7, 3]), 0.05
    found, _ = reached(FedAvg(weights=policy, max_weight=MOST), 250, steps=steps, rate=rate)
    moved = weights(policy)[:, None] * (1.0 - (1.0 - rate * CURVE) ** steps[:, None])
    np.testing.assert_allclose(found, (moved * CENTRE).sum(0) / moved.sum(0), atol=1e-7)
    towards, beside = optimum(policy, steps), optimum(policy)
    limit = weights(policy)[:, None] * (1.0 - (1.0 - 1e-7 * CURVE) ** steps[:, None])
    np.testing.assert_allclose((limit * CENTRE).sum(0) / limit.sum(0), towards, atol=1e-5)
    assert np.abs(towards - beside).max() > 0.02


@pytest.mark.parametrize("method", [FedAvgUnbiased, FedStale, FedVARP])
def test_importance_weighted_methods_count_all_clients_alike(method):
    np.testing.assert_allclose(reached(method(), 90)[0], optimum("uniform"), atol=1e-7)


def test_also_where_clients_take_part_unequally_often():
    chances = Participation("bernoulli", [0.9, 0.4, 0.6, 0.5, 0.8], 3)
    found, _ = reached(FedVARP(participation=chances), 350, rate=0.1)
    np.testing.assert_allclose(found, optimum("uniform"), atol=1e-6)


@pytest.mark.parametrize("method", [ADMM, RERCE])
def test_consensus_counts_all_clients_alike(method):
    found, _ = reached(method(rho=1.5), 150, steps=None)
    np.testing.assert_allclose(found, optimum("uniform"), atol=1e-7)
