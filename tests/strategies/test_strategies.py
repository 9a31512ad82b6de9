"""FedAvg and FFA-LoRA against NumPy, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedtune.grids.arrays import to_tensors
from fedtune.grids.cohort_grid import CohortGrid
from strategies import FedAvg, FFALoRA

A, B = "m.layer.lora_A.weight", "m.layer.lora_B.weight"
SIZES = [30, 10, 20, 40]


class Fixed:
    """Clients that answer with arrays given in advance."""

    def __init__(self, answers):
        self.answers = answers

    def handle(self, messages):
        self.received = messages
        replies = []
        for client, message in messages:
            arrays, metrics = self.answers[client]
            content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)})
            replies.append(Message(content, reply_to=message))
        return replies[::-1]


def one_round(strategy, sent, answers, server_round=1):
    clients = Fixed(answers)
    grid = CohortGrid(clients, range(len(answers)))
    with grid.serving():
        messages = strategy.configure_train(server_round, ArrayRecord(sent), ConfigRecord(), grid)
        pushed = grid.push_messages(messages)
        replies = list(grid.pull_messages(pushed))[::-1]
        arrays, metrics = strategy.aggregate_train(server_round, replies)
    return (to_tensors(arrays) if arrays else None), metrics, clients


def updates(seed=0, names=(A, B)):
    draw = np.random.default_rng(seed)
    shapes = {A: (2, 5), B: (3, 2)}
    return {n: torch.from_numpy(draw.normal(size=shapes[n]).astype(np.float32)) for n in names}


def answers(names=(A, B), **metrics):
    return [
        (updates(k + 1, names), {"num-examples": n, "loss": float(k), **metrics})
        for k, n in enumerate(SIZES)
    ]


def test_fedavg_averages_a_and_b_apart():
    given = answers()
    out, metrics, _ = one_round(FedAvg(), updates(), given)
    for name in (A, B):
        expected = np.average([a[name].numpy() for a, _ in given], axis=0, weights=SIZES)
        np.testing.assert_allclose(out[name], expected, atol=1e-6)
    assert metrics["loss"] == pytest.approx(np.average(range(4), weights=SIZES))


def test_fedits_error_is_the_covariance_of_the_factors():
    """Σ p B A − B̄ Ā = Σ p (B − B̄)(A − Ā)."""
    given = answers()
    out, _, _ = one_round(FedAvg(), updates(), given)
    p = np.asarray(SIZES) / sum(SIZES)
    products = sum(w * a[B].numpy() @ a[A].numpy() for w, (a, _) in zip(p, given, strict=True))
    mean_a, mean_b = out[A].numpy(), out[B].numpy()
    covariance = sum(
        w * (a[B].numpy() - mean_b) @ (a[A].numpy() - mean_a)
        for w, (a, _) in zip(p, given, strict=True)
    )
    np.testing.assert_allclose(products - mean_b @ mean_a, covariance, atol=1e-5)
    assert np.abs(covariance).max() > 0.1


def test_ffa_is_exact_and_broadcasts_a_unchanged():
    sent = updates()
    given = answers(names=(B,))
    out, _, clients = one_round(FFALoRA(), sent, given)
    assert torch.equal(out[A], sent[A])
    for _, message in clients.received:
        assert message.content["arrays"][A].data == ArrayRecord(sent)[A].data
    p = np.asarray(SIZES) / sum(SIZES)
    products = sum(w * a[B].numpy() @ sent[A].numpy() for w, (a, _) in zip(p, given, strict=True))
    np.testing.assert_allclose(out[B].numpy() @ out[A].numpy(), products, atol=1e-5)


def test_ffa_sets_an_upload_with_a_aside():
    given = answers(names=(B,))
    given[1][0][A] = updates(9)[A]
    strategy = FFALoRA()
    one_round(strategy, updates(), given)
    assert strategy.report.used == [0, 2, 3]
    assert "lora_A" in strategy.report.rejected[1]


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda a, m: a.pop(B), "misses"),
        (lambda a, m: a.update({B: a[B][:1]}), "shape"),
        (lambda a, m: a[B].__setitem__((0, 0), float("nan")), "NaN"),
        (lambda a, m: a[A].__setitem__((0, 0), float("inf")), "NaN or Inf"),
        (lambda a, m: m.update({"num-examples": 0}), "num-examples = 0"),
        (lambda a, m: m.update({"num-examples": float("nan")}), "num-examples"),
        (lambda a, m: m.update({"num-examples": 1e300}), "num-examples"),
        (lambda a, m: m.pop("num-examples"), "num-examples"),
        (lambda a, m: m.update({"loss": [1.0, float("nan")]}), "metric loss"),
        (lambda a, m: m.update({"num-examples": [10]}), "num-examples"),
        (lambda a, m: m.update({"loss": float("nan")}), "metric loss"),
        (lambda a, m: a.update({"extra": a[A]}), "not asked for"),
    ],
)
def test_a_malformed_reply_never_reaches_the_rule(break_it, named):
    broken, clean = answers(), answers()
    break_it(*broken[2])
    strategy = FedAvg()
    out, _, _ = one_round(strategy, updates(), broken)
    assert named in strategy.report.rejected[2]
    assert strategy.report.used == [0, 1, 3]
    rest = [0, 1, 3]
    expected = np.average(
        [clean[k][0][B].numpy() for k in rest], axis=0, weights=[SIZES[k] for k in rest]
    )
    np.testing.assert_allclose(out[B], expected, atol=1e-6)


def test_a_round_without_a_usable_reply_changes_nothing_and_says_so(caplog):
    broken = [({}, {"num-examples": 1})] * 3
    out, metrics, _ = one_round(FedAvg(), updates(), broken, server_round=7)
    assert out is None
    assert dict(metrics) == {"clients": 0, "failures": 0, "rejected": 3, "lost": 0}
    said = [record for record in caplog.records if "no reply of round 7" in record.getMessage()]
    assert [(record.levelname, "3 set aside" in record.getMessage()) for record in said] == [
        ("WARNING", True)
    ]


def test_an_update_counts_whatever_else_its_client_tells():
    """A list is a metric for Flower; one that cannot be averaged costs itself and no update."""
    told, plain = answers(), answers()
    told[2][1]["loss"] = [1.0, 2.0]
    strategy = FedAvg()
    out, metrics, _ = one_round(strategy, updates(), told)
    expected, _, _ = one_round(FedAvg(), updates(), plain)
    assert strategy.report.used == [0, 1, 2, 3]
    assert all(torch.equal(out[name], expected[name]) for name in (A, B))
    assert "loss" not in metrics


def test_what_is_wrong_is_named_in_a_line_of_few_letters():
    broken = answers()
    broken[2][1]["history"] = [float("inf")] * 10_000
    strategy = FedAvg()
    one_round(strategy, updates(), broken)
    assert "metric history = [inf, inf" in strategy.report.rejected[2]
    assert len(strategy.report.rejected[2]) < 160


def test_the_order_of_arrival_changes_no_bit():
    given = answers()
    strategy = FedAvg()
    forward, _, _ = one_round(strategy, updates(), given)
    with_reversed = Fixed(given)
    with_reversed.handle = lambda messages: Fixed(given).handle(messages)[::-1]
    grid = CohortGrid(with_reversed, range(4))
    with grid.serving():
        messages = strategy.configure_train(1, ArrayRecord(updates()), ConfigRecord(), grid)
        replies = list(grid.send_and_receive(messages))
        backward, _ = strategy.aggregate_train(1, replies)
    for name, tensor in to_tensors(backward).items():
        assert torch.equal(tensor, forward[name])


def test_each_message_has_records_of_its_own():
    config = ConfigRecord({"x": 1})
    grid = CohortGrid(Fixed([]), range(3))
    with grid.serving():
        messages = list(FedAvg().configure_train(5, ArrayRecord(updates()), config, grid))
    contents = [m.content for m in messages]
    assert len({id(c) for c in contents}) == len({id(c["config"]) for c in contents}) == 3
    assert all(c["config"]["server-round"] == 5 for c in contents)
    assert "server-round" not in config


def test_small_steps_survive_beside_large_models():
    """Differences, not full models: float32 keeps an update far below the model's own size."""
    sent = {B: torch.full((3, 2), 1000.0, dtype=torch.float32)}
    moved = [({B: sent[B] + 2**-10 * (k + 1)}, {"num-examples": 1}) for k in range(3)]
    out, _, _ = one_round(FedAvg(), sent, moved)
    torch.testing.assert_close(out[B] - sent[B], torch.full((3, 2), 2**-10 * 2), rtol=0, atol=0)
