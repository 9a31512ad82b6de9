"""Ballots: what is cast is read, in the promised bits; votes against a NumPy restatement."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtune.adapters import ranked
from fedtune.adapters.ballots import Ballot, completed
from fedtune.adapters.ranked import Ternary

SEEDS = st.integers(0, 2**31)
FORMS = st.sampled_from(["antithetic", "signed"])


def ballot(form, edges=24, keep=8, listed=None):
    return Ballot(Ternary(keep, 0.3, form), edges, listed or edges)


def scores(seed, form):
    draw = np.random.default_rng(seed).normal(size=(4, 3, 2) if form == "antithetic" else (6, 4))
    return torch.from_numpy(draw)


@given(SEEDS, FORMS, st.integers(1, 24))
def test_what_is_cast_is_read_in_the_promised_bits(seed, form, listed):
    made, given_scores = ballot(form, listed=listed), scores(seed, form)
    packed = made.cast(given_scores)
    assert packed.dtype == torch.uint8
    signs = min(8, listed) if form == "signed" else 0
    assert len(packed) == made.size == -(-listed * 5 // 8) + -(-signs // 8)
    edges, up = made.read(packed)
    flat = given_scores.flatten()
    order = (flat.abs() if form == "signed" else flat).argsort(stable=True)
    assert torch.equal(edges, order[24 - listed :])
    if signs:
        assert torch.equal(up, flat[order[24 - signs :]].sign().long())
    assert made.fault(packed) is None


@given(SEEDS, FORMS)
def test_scores_rebuilt_from_a_whole_ballot_make_the_same_matrix(seed, form):
    made, given_scores, like = ballot(form), scores(seed, form), scores(seed + 1, form)
    again = made.rebuilt(made.cast(given_scores), like)
    assert torch.equal(made.ternary.matrix(again), made.ternary.matrix(given_scores))
    assert torch.equal(again.abs().flatten().sort().values, like.abs().flatten().sort().values)


@given(SEEDS, FORMS, st.integers(4, 24))
def test_a_vote_is_the_sum_of_positions_and_signs_go_with_most(seed, form, listed):
    made, like = ballot(form, listed=listed), scores(seed, form)
    cast = [scores(seed + 1 + k, form) for k in range(5)]
    elected = made.elected([made.cast(one) for one in cast], like, scores(seed + 9, form))
    sums, votes = np.zeros(24, dtype=int), np.zeros(24, dtype=int)
    for one in cast:
        flat = one.flatten().numpy()
        order = np.argsort(np.abs(flat) if form == "signed" else flat, kind="stable")
        for place in range(24 - listed, 24):
            sums[order[place]] += place
        for edge in order[24 - min(8, listed) :]:
            votes[edge] += int(np.sign(flat[edge]))
    expected = np.argsort(sums, kind="stable")
    np.testing.assert_array_equal(made.ternary.ranking(elected).numpy(), expected)
    if form == "signed":
        found = elected.flatten().numpy()
        for edge in expected[-8:]:
            wanted = np.sign(votes[edge]) or np.sign(like.flatten().numpy()[edge])
            assert np.sign(found[edge]) == wanted


@given(SEEDS)
def test_one_voter_is_obeyed(seed):
    for form in ("antithetic", "signed"):
        made, own = ballot(form), scores(seed, form)
        like = scores(seed + 1, form)
        elected = made.elected([made.cast(own)], like, like)
        assert torch.equal(made.ternary.matrix(elected), made.ternary.matrix(own))


@given(SEEDS, st.integers(2, 23))
def test_an_edge_named_twice_or_beyond_is_a_fault(seed, listed):
    made = ballot("antithetic", listed=listed)
    edges, _ = made.read(made.cast(scores(seed, "antithetic")))
    twice = edges.clone()
    twice[0] = twice[1]
    assert made.fault(ranked.pack(twice, 5)) == "names an edge twice"
    beyond = edges.clone()
    beyond[0] = 31
    assert made.fault(ranked.pack(beyond, 5)) == "names an edge beyond 24"


@given(SEEDS, st.integers(1, 24))
def test_a_part_is_completed_and_cast_again(seed, listed):
    made = ballot("signed", listed=listed)
    packed = made.cast(scores(seed, "signed"))
    edges, signs = made.read(packed)
    whole = completed(edges, 24)
    assert ranked.is_permutation(whole)
    assert torch.equal(made.recast(packed, whole), packed)
    backwards = made.recast(packed, whole.flip(0))
    assert made.fault(backwards) is None
    known = dict(zip(edges[-made.signs :].tolist(), signs.tolist(), strict=True))
    found, given_signs = made.read(backwards)
    for edge, sign in zip(found[-made.signs :].tolist(), given_signs.tolist(), strict=True):
        assert sign == known.get(edge, 1)


@given(SEEDS)
def test_what_clients_rebuild_is_what_the_server_elected(seed):
    """Also the signs of edges that do not count, over rounds."""
    made, initial = ballot("signed"), scores(seed, "signed")
    server = initial
    for number in range(3):
        votes = [made.cast(scores(seed + 10 * number + k, "signed")) for k in range(4)]
        server = made.elected(votes, server, initial)
        assert torch.equal(made.rebuilt(made.cast(server), initial), server)
