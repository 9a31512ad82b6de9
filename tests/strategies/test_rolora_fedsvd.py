"""RoLoRA and FedSVD: every average is exact on products, and neither is lost on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedtune.participation import Participation
from strategies import FedSVD, FFALoRA, RoLoRA
from tests.strategies.kit import Federation

A, B, HEAD = "m.layer.lora_A.weight", "m.layer.lora_B.weight", "classifier.weight"
SIZES = [30, 10, 20, 40]
P = np.asarray(SIZES) / sum(SIZES)


def model(seed=0, zero_b=False):
    draw = np.random.default_rng(seed)
    made = {
        A: draw.normal(size=(2, 5)),
        B: draw.normal(size=(7, 2)),
        HEAD: draw.normal(size=(3, 4)),
    }
    found = {n: torch.from_numpy(t.astype(np.float32)) for n, t in made.items()}
    return {**found, B: torch.zeros(7, 2)} if zero_b else found


class Trained:
    """Clients that move some tensors by draws of their own, and remember what they sent."""

    def __init__(self, trains):
        self.trains, self.sent, self.came = trains, {}, {}

    def __call__(self, client, came):
        draw = np.random.default_rng(1000 + client + int(came[HEAD].abs().sum() * 1e4))
        self.came[client] = came
        self.sent[client] = {
            n: t + torch.from_numpy(draw.normal(size=tuple(t.shape)).astype(np.float32))
            for n, t in came.items()
            if self.trains(n)
        }
        return self.sent[client]


def products(sent, constant):
    """Σ p_k B_k A_k in NumPy, with what was not trained taken from the server."""
    whole = [{**constant, **sent[k]} for k in sorted(sent)]
    return sum(p * (one[B] @ one[A]).numpy() for p, one in zip(P, whole, strict=True))


def test_fedsvds_new_product_is_the_mean_of_the_products_in_every_round():
    clients = Trained(lambda name: name != A)
    made = Federation(FedSVD(), model(), clients, 4, SIZES)
    for _ in range(3):
        before = made.model
        new = made.go()
        np.testing.assert_allclose(new[B] @ new[A], products(clients.sent, before), atol=1e-5)
        torch.testing.assert_close(new[A] @ new[A].T, torch.eye(2), atol=1e-5, rtol=0)
        for client in range(4):
            assert torch.equal(clients.came[client][A], before[A])
            assert torch.equal(clients.came[client][B], before[B])


def test_fedsvd_that_never_refactors_is_ffa_lora_to_the_bit():
    found = []
    for strategy in (FedSVD(period=100), FFALoRA()):
        made = Federation(strategy, model(), Trained(lambda name: name != A), 4, SIZES)
        for _ in range(3):
            made.go()
        found.append(made.model)
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_fedsvd_refactors_when_its_period_and_warmup_say():
    made = Federation(FedSVD(period=2, warmup=1), model(), Trained(lambda n: n != A), 4, SIZES)
    changed = []
    for _ in range(5):
        before = made.model[A]
        changed.append(not torch.equal(made.go()[A], before))
    assert changed == [False, False, True, False, True]


def test_the_order_and_signs_of_singular_vectors_do_not_matter(monkeypatch):
    """Compare products, never factors: flipped and swapped vectors give the same next round."""
    import strategies.fedsvd as module

    real = module.refactored

    def other(b, a):
        b, a = real(b, a)
        return b.flip(1) * torch.tensor([-1.0, 1.0]), a.flip(0) * torch.tensor([[-1.0], [1.0]])

    def answer(client, came):
        """A step of the product: B moves by G·Aᵀ, as gradient descent would."""
        g = torch.from_numpy(np.random.default_rng(client).normal(size=(7, 5)).astype(np.float32))
        return {B: came[B] - 0.1 * g @ came[A].T, HEAD: came[HEAD]}

    found = []
    for refactor in (real, other):
        monkeypatch.setattr(module, "refactored", refactor)
        made = Federation(FedSVD(), model(), answer, 4, SIZES)
        for _ in range(3):
            made.go()
        found.append(made.model[B] @ made.model[A])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def only(strategy):
    def trains(name):
        other = ".lora_A." if strategy.factor == "B" else ".lora_B."
        return other not in name

    return Trained(trains)


def test_rolora_begins_with_b_alternates_and_averages_exactly():
    strategy = RoLoRA()
    clients = only(strategy)
    made = Federation(strategy, model(zero_b=True), clients, 4, SIZES)
    for factor, still in (("B", A), ("A", B), ("B", A), ("A", B)):
        before = made.model
        new = made.go()
        assert made.clients.received[0][1].content["config"]["factor"] == factor
        assert torch.equal(new[still], before[still])
        np.testing.assert_allclose(new[B] @ new[A], products(clients.sent, before), atol=1e-5)


def test_rolora_sets_aside_a_reply_with_the_other_factor():
    strategy = RoLoRA()
    made = Federation(strategy, model(), lambda client, came: came, 4, SIZES)
    made.go()
    assert strategy.report.used == []
    assert "not asked for" in strategy.report.rejected[0]


def test_rolora_that_never_alternates_is_ffa_lora_to_the_bit():
    found = []
    for strategy in (RoLoRA(period=100), FFALoRA()):
        made = Federation(strategy, model(), Trained(lambda name: name != A), 4, SIZES)
        for _ in range(3):
            made.go()
        found.append(made.model)
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_a_round_without_a_reply_is_not_a_turn():
    strategy = RoLoRA(participation=Participation("bernoulli", 0.3, 5))
    made = Federation(strategy, model(zero_b=True), only(strategy), 4, SIZES)
    factors = []
    for _ in range(12):
        made.go()
        factors.append((strategy.factor, len(strategy.report.used)))
    assert any(used == 0 for _, used in factors)
    turns = [factor for factor, used in factors if used]
    assert turns == ["B", "A"] * (len(turns) // 2) + ["B"] * (len(turns) % 2)


@pytest.mark.parametrize("cls", [RoLoRA, FedSVD])
def test_clients_that_remember_are_not_sent_an_unchanged_factor_again(cls):
    """Payload of each round, against the card: RoLoRA sends the factor just aggregated."""
    strategy = cls(clients_remember=True)
    memory: dict = {}
    seen = []

    def answer(client, came):
        seen.append((made.round, sorted(n for n in came if "lora" in n)))
        memory.setdefault(client, {}).update(came)
        own = memory[client]
        trains = (lambda n: n != A) if cls is FedSVD else only(strategy).trains
        return {n: t + 1.0 for n, t in own.items() if trains(n)}

    made = Federation(strategy, model(), answer, 4, SIZES)
    for _ in range(3):
        made.go()
    sent = {number: {tuple(n) for r, n in seen if r == number} for number in (1, 2, 3)}
    assert sent[1] == {(A, B)}
    if cls is RoLoRA:
        assert sent[2] == {(B,)}
        assert sent[3] == {(A,)}
    else:
        assert sent[2] == sent[3] == {(A, B)}


def test_a_client_that_missed_rounds_gets_both_factors():
    strategy = RoLoRA(
        clients_remember=True,
        participation=Participation("trace", trace={1: (0, 1), 2: (0,), 3: (0, 1)}),
    )
    got = {}

    def answer(client, came):
        got[made.round, client] = sorted(n for n in came if "lora" in n)
        own = {**made.model, **came}
        return {n: t + 1.0 for n, t in own.items() if only(strategy).trains(n)}

    made = Federation(strategy, model(), answer, 2, SIZES)
    for _ in range(3):
        made.go()
    assert got[3, 0] == [A]
    assert got[3, 1] == [A, B]


def test_who_holds_what_survives_a_restart():
    first = RoLoRA(clients_remember=True)
    made = Federation(first, model(), None, 4, SIZES)
    made.clients.answer = lambda client, came: {
        n: t + 1.0 for n, t in {**made.model, **came}.items() if only(made.strategy).trains(n)
    }
    made.go()
    second = RoLoRA(clients_remember=True)
    second.load_state_dict(first.state_dict())
    made.strategy = second
    made.go()
    names = set(made.clients.received[0][1].content["arrays"])
    assert names == {B, HEAD}
