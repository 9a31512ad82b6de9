"""Kind `rank`: orders, votes and packing as identities, and the matrix that they choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtune.adapters import ranked
from fedtune.adapters.ranked import Ternary
from fedtune.cohort.onebyone import SequentialBackend
from fedtune.cohort.together import CohortBackend
from fedtune.scenario.local import LocalSection
from tests.cohort import kit

SEEDS = st.integers(0, 2**31)


def rankings(seed, n=7, d=30):
    draw = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([draw.permutation(d) for _ in range(n)]))


@given(SEEDS, st.integers(1, 300))
def test_packing_takes_the_promised_bits_and_comes_back(seed, d):
    (ranking,) = rankings(seed, 1, d)
    bits = ranked.bits_of(d)
    packed = ranked.pack(ranking, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-d * ranked.bits_of(d) // 8)
    assert torch.equal(ranked.unpack(packed, d, bits), ranking)


def test_the_bits_of_the_paper():
    """⌈log₂ d⌉: 10 for 1024 edges, 11 for 1025; fp32 would take 32."""
    assert [ranked.bits_of(d) for d in (2, 3, 1024, 1025)] == [1, 2, 10, 11]


@given(SEEDS)
def test_a_vote_ignores_the_order_of_clients_and_the_names_of_edges(seed):
    found = rankings(seed)
    assert torch.equal(ranked.vote(found), ranked.vote(found.flip(0)))
    sums = ranked.positions_of(found).sum(0)
    n, d = found.shape
    assert int(sums.sum()) == n * d * (d - 1) // 2
    renamed = torch.from_numpy(np.random.default_rng(seed + 1).permutation(d))
    again = ranked.positions_of(renamed[found]).sum(0)
    assert torch.equal(again[renamed], sums)


@given(SEEDS)
def test_one_client_moves_a_sum_by_less_than_d_and_equal_voters_are_obeyed(seed):
    found = rankings(seed)
    other = found.clone()
    other[0] = rankings(seed + 1)[0]
    before, after = (ranked.positions_of(r).sum(0) for r in (found, other))
    assert int((before - after).abs().max()) <= found.shape[1] - 1
    same = found[:1].expand(5, -1)
    assert torch.equal(ranked.vote(same), found[0])


@given(SEEDS)
def test_argsort_three_times_is_argsort(seed):
    scores = torch.from_numpy(np.random.default_rng(seed).normal(size=40))
    ranking = ranked.ranking_of(scores)
    assert torch.equal(ranked.positions_of(ranked.positions_of(ranking)), ranking)
    assert torch.equal(scores[ranking], scores.sort().values)


@given(SEEDS, st.integers(1, 4))
def test_a_minority_that_reverses_a_unanimous_vote_changes_nothing(seed, malicious):
    (honest,) = rankings(seed, 1)
    votes = torch.cat([honest.expand(9 - malicious, -1), honest.flip(0).expand(malicious, -1)])
    assert torch.equal(ranked.vote(votes), honest)


@given(SEEDS)
def test_scores_take_the_order_and_keep_their_values(seed):
    draw = np.random.default_rng(seed)
    like = torch.from_numpy(draw.normal(size=(4, 3, 2)))
    ranking = torch.from_numpy(draw.permutation(24))
    scores = ranked.scores_of(ranking, like)
    assert torch.equal(ranked.ranking_of(scores), ranking)
    assert torch.equal(scores.flatten().sort().values, like.flatten().sort().values)


@given(SEEDS, st.floats(0.01, 0.99), st.booleans())
def test_before_round_one_nothing_is_added(seed, share, by_magnitude):
    draws = torch.from_numpy(np.random.default_rng(seed).normal(size=(6, 4)))
    keep = ranked.edges_kept(draws.numel(), share)
    assert keep % 2 == 0
    ternary = Ternary(keep, 0.3, by_magnitude=by_magnitude)
    scores = ranked.initial_scores(draws, 0.5, ternary)
    matrix = ternary.matrix(scores)
    assert torch.equal(matrix, torch.zeros(6, 4, dtype=matrix.dtype))
    decides = scores.abs() if by_magnitude else scores
    places = ranked.positions_of(ranked.ranking_of(decides)).view(6, 4, 2)
    assert len(scores.unique()) == scores.numel()
    assert ((places[..., 0] // 2) == (places[..., 1] // 2)).all()


@given(SEEDS)
def test_signed_edges_count_by_size_and_the_gradient_passes(seed):
    draw = np.random.default_rng(seed)
    scores = torch.from_numpy(draw.normal(size=(3, 5, 2))).requires_grad_()
    before = torch.from_numpy(draw.normal(size=(5, 2)))
    matrix = Ternary(4, 0.5, "signed", base=before).matrix(scores)
    for one, made in zip(scores.detach(), matrix.detach(), strict=True):
        chosen = one.abs() >= one.abs().flatten().sort().values[-4]
        assert torch.equal(made, 0.5 * one.sign() * chosen - before)
    weight = torch.from_numpy(draw.normal(size=matrix.shape))
    (matrix * weight).sum().backward()
    assert torch.equal(scores.grad, 0.5 * weight)


@given(SEEDS)
def test_a_mask_keeps_weights_and_passes_their_gradient(seed):
    draw = np.random.default_rng(seed)
    weights = torch.from_numpy(draw.normal(size=(4, 2, 3, 3)))
    scores = torch.from_numpy(draw.normal(size=weights.shape)).requires_grad_()
    made = Ternary(10, 1.0, "mask", base=weights).matrix(scores)
    assert int((made != 0).sum()) == 10
    assert torch.equal(made[made != 0], weights[made != 0])
    made.sum().backward()
    assert torch.equal(scores.grad, weights)


@given(SEEDS)
def test_a_matrix_holds_the_highest_edges_and_the_gradient_passes(seed):
    draw = np.random.default_rng(seed)
    scores = torch.from_numpy(draw.normal(size=(3, 5, 2, 2))).requires_grad_()
    how = Ternary(6, 0.5)
    matrix = how.matrix(scores)
    for one, made in zip(scores.detach(), matrix, strict=True):
        chosen = (one >= one.flatten().sort().values[-6]).double()
        assert torch.equal(made, 0.5 * (chosen[..., 0] - chosen[..., 1]))
    weight = torch.from_numpy(draw.normal(size=matrix.shape))
    (matrix * weight).sum().backward()
    expected = 0.5 * torch.stack([weight, -weight], -1)
    assert torch.equal(scores.grad, expected)


@given(SEEDS)
def test_what_is_no_permutation_is_seen(seed):
    (ranking,) = rankings(seed, 1)
    assert ranked.is_permutation(ranking)
    broken = ranking.clone()
    broken[0] = broken[1]
    assert not ranked.is_permutation(broken)


@pytest.mark.parametrize("form", ["antithetic", "signed"])
@pytest.mark.parametrize("head", ["shared", "frozen"])
def test_a_cohort_of_scores_is_clients_one_by_one(head, form):
    local = LocalSection(epochs=2, batch_size=3, optimizer="sgd", lr=0.5, momentum=0.9)
    found = []
    for make in (CohortBackend, SequentialBackend):
        setting = kit.setting(kind="rank", head=head, local=local, dropout=0.2, keep=0.3, form=form)
        works = kit.works(setting)
        results = make(setting).train(works, 1)
        found.append([setting.layout.flatten(r.tensors) for r in results])
        frozen = {s.name for s in setting.layout.specs if not s.trained}
        assert any(".lora_A." in name for name in frozen)
    start = setting.layout.flatten(works[0].state)
    for one, other in zip(*found, strict=True):
        assert kit.distance(one - start, other - start) < 1e-8
        assert float((one - start).norm()) > 1e-3


def test_a_rankings_bytes_are_those_of_the_card():
    """4096 x 8 entries, two edges each: 65,536 edges of 16 bits."""
    setting = kit.setting(kind="rank")
    for spec in setting.layout.sent:
        if spec.ternary is not None:
            assert spec.wire_bytes(4) == -(-spec.size * ranked.bits_of(spec.size) // 8)
        else:
            assert spec.wire_bytes(4) == 4 * spec.size
    assert 65_536 * ranked.bits_of(65_536) // 8 == 131_072
