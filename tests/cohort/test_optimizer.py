"""The stacked optimiser: every row is torch's own optimiser with that row's learning rate."""

from __future__ import annotations

import pytest
import torch

from fedtune.cohort.onebyone import make_optimizer
from fedtune.cohort.optimizer import StackedOptimizer
from fedtune.scenario.local import LocalSection
from tests.cohort.test_equality import OPTIMIZERS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_follow_torch_optim_with_rates_of_their_own(name):
    local = LocalSection(**OPTIMIZERS[name])
    torch.manual_seed(0)
    theta = torch.randn(3, 17, dtype=torch.float64)
    rows = [torch.nn.Parameter(row.clone()) for row in theta]
    plain = [make_optimizer(local, [row]) for row in rows]
    stacked = StackedOptimizer(local, theta)
    for step in range(6):
        grad = torch.randn(3, 17, dtype=torch.float64) * (10 if step == 2 else 1)
        rate = torch.rand(3, 1, dtype=torch.float64) * 0.1
        for row, optimizer, g, r in zip(rows, plain, grad, rate, strict=True):
            row.grad = g.clone()
            optimizer.param_groups[0]["lr"] = float(r)
            if local.clip:
                torch.nn.utils.clip_grad_norm_([row], local.clip)
            optimizer.step()
        stacked.step(theta, grad.clone(), rate)
    torch.testing.assert_close(theta, torch.stack([r.detach() for r in rows]), rtol=1e-12, atol=0)


def test_rows_that_stay_keep_their_state():
    local = LocalSection(optimizer="adam", lr=0.1)
    theta = torch.zeros(3, 2)
    whole = StackedOptimizer(local, theta)
    whole.step(theta, torch.tensor([[1.0, 2], [3, 4], [5, 6]]), torch.full((3, 1), 0.1))
    kept = torch.tensor([0, 2])
    before = whole.buffers[0].clone()
    whole.keep(kept)
    assert torch.equal(whole.buffers[0], before[kept])
