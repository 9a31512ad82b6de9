"""Bugs of published code, planted: the checks that our strategies pass must see each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from strategies import FedAvg, FedSB, FedSVD, FFALoRA, RoLoRA
from tests.cohort import kit
from tests.strategies.kit import Federation

A, B, R = "m.layer.lora_A.weight", "m.layer.lora_B.weight", "m.layer.lora_R.weight"
SIZES = [30, 10, 20, 40]
SHAPES = {A: (2, 5), B: (7, 2), R: (2, 2)}


def draws(seed, *names):
    draw = np.random.default_rng(seed)
    return {n: torch.from_numpy(draw.normal(size=SHAPES[n])) for n in names}


def shares(count):
    return np.asarray(SIZES[:count]) / sum(SIZES[:count])


def gap(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


@pytest.mark.parametrize("count", [2, 4])
def test_a_mean_that_only_the_first_client_enters(count):
    """FLoRA's FedIT branch assigns to a misspelled variable."""
    sent = {k: draws(k, A, B) for k in range(count)}
    made = Federation(FedAvg(), draws(9, A, B), lambda k, came: sent[k], count, SIZES)
    new, p = made.go(), shares(count)
    for name in (A, B):
        right = sum(w * sent[k][name].numpy() for k, w in enumerate(p))
        assert gap(new[name], right) < 1e-12
        assert gap(p[0] * sent[0][name].numpy(), right) > 0.1
        assert gap(sent[0][name].numpy(), right) > 0.1


def test_a_list_of_replies_that_is_never_cleared():
    """Fed-SB's multi-round scripts average the replies of all rounds so far."""
    seen = []

    def answer(client, came):
        own = draws(100 * made.round + client, R)
        seen.append((made.round, client, own[R].numpy()))
        return own

    made = Federation(FedSB(), draws(9, A, B, R), answer, 4, SIZES)
    for number in (1, 2, 3):
        new = made.go()
        right = sum(shares(4)[k] * r for n, k, r in seen if n == number)
        everything = sum(shares(4)[k] * r for _, k, r in seen) / number
        assert gap(new[R], right) < 1e-12
        assert (gap(everything, right) > 0.1) == (number > 1)


def test_weights_on_both_factors_of_a_product():
    """Weights apply once: p_k on A and on B loses a factor p_k of every product."""
    sent = {k: draws(k, B) for k in range(4)}
    start = draws(9, A, B)
    made = Federation(FFALoRA(), start, lambda k, came: sent[k], 4, SIZES)
    new, p = made.go(), shares(4)
    a = start[A].numpy()
    right = sum(w * sent[k][B].numpy() @ a for k, w in enumerate(p))
    twice = sum(w * sent[k][B].numpy() @ (w * a) for k, w in enumerate(p))
    assert gap(new[B].numpy() @ new[A].numpy(), right) < 1e-12
    assert gap(twice, right) > 0.1


@pytest.mark.parametrize("kind", ["lora", "ffa", "lora-sb"])
def test_factors_of_equal_shape_that_are_all_the_same(kind):
    """Fed-SB's FFA builder resets its counter in the loop, so every A is drawn from one seed."""
    initial = kit.adapted(kit.bert, kind=kind).initial
    found = [t for n, t in initial.items() if ".lora_A." in n]
    assert len(found) == 4
    for index, one in enumerate(found):
        for other in found[:index]:
            assert one.shape == other.shape
            assert gap(one, other) > 0.01


def test_a_frozen_factor_that_is_trained_after_all():
    """FedEx-LoRA's GPT-2 builder freezes A before it is injected: trained, and never averaged."""
    model = kit.adapted(kit.gpt2, kind="ffa").model
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("lora_B" in n for n in trained)
    assert not any("lora_A" in n for n in trained)


@pytest.mark.parametrize("strategy", [FFALoRA, FedSVD, RoLoRA], ids=lambda cls: cls.name)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_two_or_three_clients_average_products_exactly(strategy, count):
    sent = {k: draws(k, B) for k in range(count)}
    start = draws(9, A, B)
    made = Federation(strategy(), start, lambda k, came: sent[k], count, SIZES)
    new = made.go()
    right = sum(w * sent[k][B] @ start[A] for k, w in enumerate(shares(count)))
    assert gap(new[B] @ new[A], right) < 1e-10
