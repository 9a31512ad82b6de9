"""What clients do in a round, and what they keep for the next."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fedtune
from fedtune.adapters.packed import Packed
from fedtune.apps.rounds import MOMENTUM, ClientView, with_momentum
from fedtune.runs.checkpoints import load_checkpoint
from tests.cohort import kit
from tests.runs.kit import adapter_bytes, lines, small

BETA = 0.7


def test_momentum_is_the_weighted_sum_of_all_updates():
    draw = np.random.default_rng(0)
    updates = [torch.from_numpy(draw.standard_normal(5)) for _ in range(6)]
    starts = [torch.from_numpy(draw.standard_normal(5)) for _ in updates]
    kept: dict[str, torch.Tensor] = {}
    for t, (start, update) in enumerate(zip(starts, updates, strict=True)):
        view = ClientView(0, t + 1, {"x": start}, {}, kept, {}, None, {}, None)
        found = with_momentum(view, {"x": start + update}, BETA)["x"] - start
        expected = sum((1 - BETA) * BETA ** (t - k) * updates[k] for k in range(t + 1))
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert set(kept) == {MOMENTUM + "x"}


@pytest.mark.parametrize("head", ["shared", "local"])
def test_what_is_shared_can_be_put_into_without_a_change_of_the_result(head):
    layout = kit.adapted(head=head).layout
    view = ClientView(0, 1, {}, {}, {}, {}, layout, {}, None)
    packed = Packed(layout.places, torch.arange(float(layout.width)))
    for tensors in (packed, dict(packed)):
        shared = view.shared(tensors)
        assert list(shared) == [spec.name for spec in layout.sent]
        assert all(torch.equal(shared[name], packed[name]) for name in shared)
        assert shared is not tensors or isinstance(tensors, Packed)


@pytest.fixture(scope="module")
def with_client_momentum(tmp_path_factory):
    path = tmp_path_factory.mktemp("momentum") / "run"
    return fedtune.run("quickstart", small(local__client_momentum=BETA, run__rounds=4), path)


def test_a_run_with_client_momentum_goes_on_bit_for_bit(tmp_path, with_client_momentum):
    changes = small(local__client_momentum=BETA, run__rounds=2)
    fedtune.run("quickstart", changes, tmp_path / "half")
    again = fedtune.resume(tmp_path / "half", {"run.rounds": 4})
    assert lines(again) == lines(with_client_momentum)
    assert adapter_bytes(again) == adapter_bytes(with_client_momentum)
    plain = fedtune.run("quickstart", small(run__rounds=4), tmp_path / "plain")
    assert lines(plain) != lines(with_client_momentum)


def test_the_first_round_with_momentum_is_a_shorter_step(tmp_path, with_client_momentum):
    """m begins at 0, so the first update is (1 - beta) of the plain one."""
    one = fedtune.run("quickstart", small(run__rounds=1), tmp_path / "plain")
    two = fedtune.run(
        "quickstart", small(run__rounds=1, local__client_momentum=BETA), tmp_path / "momentum"
    )
    plain, short = (load_file(d.adapter / "adapter_model.safetensors") for d in (one, two))
    names = [name for name in plain if ".lora_B." in name]
    assert names
    for name in names:  # B starts at 0
        assert torch.allclose(short[name], (1 - BETA) * plain[name], atol=1e-6)


def test_only_clients_that_took_part_have_a_momentum(with_client_momentum):
    found = load_checkpoint(with_client_momentum.checkpoints)
    kept = {int(key.split("/")[0]) for key in found.groups["clients"]}
    assert kept == {c for line in with_client_momentum.metrics for c in line["client_ids"]}
    assert not (with_client_momentum.path / "clients").exists()
