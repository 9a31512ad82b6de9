"""FedStale against NumPy, its two ends, its mean, its variance and its memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedtune.participation import Participation
from strategies import FedAvgUnbiased, FedStale, FedVARP
from tests.strategies.kit import Federation

N, D = 5, 4
CHANCES = [0.9, 0.25, 0.5, 0.7, 0.4]
DRAW = np.random.default_rng(7)
FIXED = DRAW.normal(size=(N, D))
DRIFT = DRAW.normal(size=(N, D))


def federation(strategy, moving=True):
    """Clients whose updates move from round to round (or stay)."""
    made = Federation(strategy, {"x": torch.zeros(D, dtype=torch.float64)}, None, N)

    def answer(client, sent):
        step = FIXED[client] + (made.round * DRIFT[client] if moving else 0.0)
        return {"x": sent["x"] + torch.from_numpy(step)}

    made.clients.answer = answer
    return made


def participation(seed=0, chances=CHANCES):
    return Participation("bernoulli", chances, seed)


def oracle(taking_part, beta, rounds):
    """The card's formulas, round by round, from x = 0; also β under `auto`."""
    x, h, mean, xs, betas = np.zeros(D), np.zeros((N, D)), np.zeros(D), [], []
    p, w = np.asarray(taking_part.value), np.full(N, 1 / N)
    for number in range(1, rounds + 1):
        s = taking_part.draw(range(N), number)
        delta = FIXED + number * DRIFT
        b = beta
        if beta == "auto":
            c = w**2 * (1 - p) / p
            above = sum(c[k] / p[k] * (delta[k] @ h[k]) for k in s)
            below = sum(c[k] * (h[k] @ h[k]) for k in range(N))
            b = min(1.0, max(0.0, above / below)) if below else 0.0
        if s or beta != "auto":
            u = sum((w[k] / p[k] * delta[k] for k in s), np.zeros(D))
            u += b * (mean - sum((w[k] / p[k] * h[k] for k in s), np.zeros(D)))
            x = x + u
        for k in s:
            mean = mean + w[k] * (delta[k] - h[k])
            h[k] = delta[k]
        xs.append(x)
        betas.append(b)
    return np.stack(xs), betas


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, "auto"])
def test_thirty_rounds_are_those_of_the_formulas(beta):
    made = federation(FedStale(beta=beta, participation=participation()))
    found, betas = [], []
    for _ in range(30):
        found.append(made.go()["x"].numpy())
        betas.append(made.strategy.report.notes.get("beta"))
    expected, wanted = oracle(participation(), beta, 30)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    assert [b for b in betas if b is not None] == pytest.approx(
        [w for b, w in zip(betas, wanted, strict=True) if b is not None], abs=1e-9
    )
    if beta == "auto":
        assert any(0.0 < b < 1.0 for b in betas if b is not None)


@pytest.mark.parametrize(
    ("beta", "end"), [(0.0, FedAvgUnbiased), (1.0, FedVARP)], ids=["unbiased", "fedvarp"]
)
def test_its_ends_are_fedavg_unbiased_and_fedvarp_to_the_bit(beta, end):
    stale = federation(FedStale(beta=beta, participation=participation()))
    other = federation(end(participation=participation()))
    for _ in range(12):
        assert torch.equal(stale.go()["x"], other.go()["x"])


def test_with_all_clients_beta_makes_no_difference():
    found = []
    for beta in (0.0, 0.4, 1.0):
        everyone = participation(chances=[1.0] * N)
        made = federation(FedStale(beta=beta, participation=everyone))
        for _ in range(4):
            made.go()
        found.append(made.model["x"])
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(found[0], found[2], atol=1e-12, rtol=0)


def test_constant_updates_have_no_variance_once_all_are_known():
    """β = 1: every round moves by the mean update, whoever takes part, or if nobody does."""
    rare = participation(chances=[0.3, 0.25, 0.4, 0.2, 0.3])
    made = federation(FedVARP(participation=rare), moving=False)
    while len(made.strategy.memory) < N:
        made.go()
    sizes = set()
    for _ in range(20):
        before = made.model["x"].clone()
        moved = (made.go()["x"] - before).numpy()
        np.testing.assert_allclose(moved, FIXED.mean(0), atol=1e-12)
        sizes.add(len(made.strategy.report.used))
    assert 0 in sizes
    assert len(sizes) > 2


@pytest.mark.long
def test_its_mean_is_full_participation_and_its_variance_the_formula():
    beta, rounds = 0.6, 4000
    made = federation(FedStale(beta=beta, participation=participation()), moving=False)
    while len(made.strategy.memory) < N:
        made.go()
    steps = []
    for _ in range(rounds):
        before = made.model["x"].clone()
        steps.append((made.go()["x"] - before).numpy())
    p = np.asarray(CHANCES)[:, None]
    variance = ((1 - p) / p * ((1 - beta) * FIXED / N) ** 2).sum(0)
    gap = np.abs(np.mean(steps, 0) - FIXED.mean(0))
    assert (gap <= 4 * np.sqrt(variance / rounds)).all()
    np.testing.assert_allclose(np.var(steps, 0), variance, rtol=0.15)


def test_the_running_mean_is_that_of_the_memory():
    made = federation(FedStale(beta=0.5, participation=participation()))
    for _ in range(25):
        made.go()
    again = torch.stack(list(made.strategy.memory.values())).sum(0) / N
    torch.testing.assert_close(made.strategy.mean, again, atol=1e-12, rtol=0)


def test_state_given_back_goes_on_to_the_bit():
    whole = federation(FedStale(beta="auto", participation=participation()))
    for _ in range(6):
        whole.go()
    taken = federation(FedStale(beta="auto", participation=participation()))
    taken.strategy.load_state_dict(whole.strategy.state_dict())
    taken.model, taken.round = whole.model, whole.round
    for _ in range(6):
        assert torch.equal(whole.go()["x"], taken.go()["x"])


def test_a_memory_of_the_new_update_in_the_step_is_caught():
    """Negative control: the step must use h from before the round."""
    made = federation(FedStale(beta=1.0, participation=participation()))
    real = FedStale._held
    made.strategy._held = lambda client, like: (
        torch.from_numpy(FIXED[client] + made.round * DRIFT[client])
        if client in made.strategy.memory
        else real(made.strategy, client, like)
    )
    found = [made.go()["x"].numpy() for _ in range(10)]
    assert not np.allclose(found, oracle(participation(), 1.0, 10)[0], atol=1e-3)
