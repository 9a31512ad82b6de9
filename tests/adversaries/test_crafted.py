"""Attacks on what is sent: definitions restated, bounds met, and searches that find the worst."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from fedtune.adversaries.attacks import ATTACKS
from fedtune.adversaries.colluding import ALIE, IPM, Adaptive, Mimic, MinMax, MinSum
from fedtune.adversaries.crafted import Gaussian, Knowledge, NonFinite, Scaling, SignFlip, Uniform
from fedtune.adversaries.setup import check_attack
from fedtune.errors import ScenarioError
from fedtune.rules import make_rule
from fedtune.scenario.loading import validate
from tests.rules.kit import updates

HONEST = torch.from_numpy(np.random.default_rng(0).normal(0.3, 1.0, size=(8, 20)))
OWN = torch.from_numpy(np.random.default_rng(1).normal(size=20))


def mean(rows):
    return rows.mean(0)


def known(honest=HONEST, aggregate=mean, seed=0):
    return Knowledge(honest, 10, 2, aggregate, torch.Generator().manual_seed(seed))


def test_the_simple_ones_are_their_formulas():
    assert torch.equal(SignFlip(factor=2.0)(known(), OWN), -2.0 * OWN)
    assert torch.equal(Scaling(factor=5.0)(known(), OWN), 5.0 * OWN)
    assert torch.allclose(IPM(epsilon=0.7)(known(), OWN), -0.7 * HONEST.mean(0))
    sent = NonFinite()(known(), OWN)
    assert not sent[:3].isfinite().any()
    assert torch.equal(sent[3:], OWN[3:])
    assert ATTACKS.keys() >= {"ipm", "alie", "min-max", "min-sum", "mimic", "adaptive"}


def test_alie_hides_behind_as_many_as_a_majority_needs():
    n, f = 10, 2
    supporters = n // 2 + 1 - f
    z = norm.ppf((n - f - supporters) / (n - f))
    expected = HONEST.mean(0) - z * HONEST.std(0)
    assert torch.allclose(ALIE()(known(), OWN), expected)
    assert torch.allclose(ALIE(z=1.5)(known(), OWN), HONEST.mean(0) - 1.5 * HONEST.std(0))
    assert ALIE()(known(HONEST[:1]), OWN).isfinite().all()


def test_noise_is_new_for_each_draw_and_of_the_length_that_was_asked_for():
    honest = torch.randn(5, 20_000, generator=torch.Generator().manual_seed(3)).double()
    own = honest[0]
    one, two = (Gaussian(sigma=4.0)(known(honest, seed=s), own) for s in (1, 2))
    assert float(one.std() / honest.square().mean().sqrt()) == pytest.approx(4.0, rel=0.03)
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 0.05
    assert torch.equal(one, Gaussian(sigma=4.0)(known(honest, seed=1), own))


def test_uniform_numbers_are_of_one_sign_and_of_the_size_that_was_asked_for():
    honest = torch.randn(5, 20_000, generator=torch.Generator().manual_seed(3)).double()
    found = Uniform(size=6.0)(known(honest, seed=1), honest[0]) / honest.square().mean().sqrt()
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 6.0
    assert float(found.mean()) == pytest.approx(3.0, rel=0.03)


@pytest.mark.parametrize("deviation", ["unit", "sign", "std"])
def test_min_max_and_min_sum_go_as_far_as_their_bound(deviation):
    rows = HONEST.numpy()
    apart = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    sent = MinMax(deviation)(known(), OWN).numpy()
    assert ((rows - sent) ** 2).sum(1).max() == pytest.approx(apart.max(), rel=1e-6)
    sent = MinSum(deviation)(known(), OWN).numpy()
    assert ((rows - sent) ** 2).sum() == pytest.approx(apart.sum(1).max(), rel=1e-6)
    along = rows.mean(0) - sent
    expected = {"unit": rows.mean(0), "sign": np.sign(rows.mean(0)), "std": rows.std(0, ddof=1)}
    cosine = (
        along @ expected[deviation] / np.linalg.norm(along) / np.linalg.norm(expected[deviation])
    )
    assert cosine == pytest.approx(1.0)


def test_identical_honest_updates_leave_nothing_to_hide_behind():
    same = HONEST[:1].repeat(4, 1)
    for attack in (MinMax(), MinSum(), ALIE(z=1.0), Mimic(), Adaptive()):
        assert torch.allclose(attack(known(same), OWN), HONEST[0])


def test_mimic_sends_the_honest_update_that_lies_farthest_along_the_main_direction():
    honest = HONEST.clone()
    honest[3] += 50.0
    assert torch.equal(Mimic()(known(honest), OWN), honest[3])


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "multi-krum", "geometric-median"])
def test_adaptive_does_at_least_as_much_harm_as_any_fixed_length_on_its_grid(name):
    rule = make_rule(name, f=2)

    def aggregate(rows):
        return rule(updates(rows.numpy())).update

    def damage(sent):
        rows = torch.cat([sent.expand(2, -1), HONEST])
        return float((aggregate(rows) - HONEST.mean(0)).norm())

    sent = Adaptive()(known(aggregate=aggregate), OWN)
    grid = torch.linspace(1.25, 20.0, 16)
    assert damage(sent) >= max(damage(HONEST.mean(0) - g * HONEST.std(0)) for g in grid) - 1e-9
    assert damage(sent) > damage(HONEST.mean(0))


@pytest.mark.parametrize("kind", ["min-max", "min-sum", "adaptive"])
def test_a_deviation_that_is_none_is_refused(kind):
    def check(deviation):
        attack = {"kind": kind, "deviation": deviation}
        check_attack(validate({"attack": attack, "adapter": {"kind": "lora"}}))

    for deviation in ("unit", "sign", "std"):
        check(deviation)
    with pytest.raises(ScenarioError, match=r"attack.deviation = 'mean': .*'unit', 'sign' or"):
        check("mean")


@pytest.mark.parametrize(("key", "value"), [("target", "a"), ("size", 0), ("token", -1)])
def test_a_backdoors_parameters_are_of_their_type_and_range(key, value):
    attack = {"kind": "backdoor", key: value}
    with pytest.raises(ScenarioError, match=rf"attack.{key} = {value!r}"):
        check_attack(validate({"attack": attack, "adapter": {"kind": "lora"}}))
