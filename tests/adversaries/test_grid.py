"""The attacker's view of a round: what each client was sent, and what it would have sent."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from fedtune.adversaries.crafted import SignFlip
from fedtune.adversaries.grid import AttackGrid
from fedtune.grids.arrays import to_record, to_tensors
from fedtune.grids.cohort_grid import CohortGrid
from fedtune.grids.faults import FaultGrid
from fedtune.scenario.trouble import FaultsSection
from strategies import FedAvg, RoLoRA

A, B = "m.layer.lora_A.weight", "m.layer.lora_B.weight"
CLIENTS, MALICIOUS = 5, [1, 3]
MODEL = {
    "a": torch.arange(6, dtype=torch.float64).view(2, 3),
    "b": torch.full((4,), -2.0, dtype=torch.float64),
}


def update_of(client, tensors):
    """What local training of a client adds, whatever it was sent."""
    return {name: torch.full_like(t, 0.1 * (client + 1)) for name, t in tensors.items()}


class Moving:
    """Clients that add their own update to what they were sent, or to what they hold."""

    def __init__(self, held=()) -> None:
        self.held, self.sent = dict(held), {}

    def handle(self, messages):
        replies = []
        for client, message in messages:
            sent = {**self.held, **to_tensors(message.content["arrays"])}
            self.sent[client] = {name: tensor.clone() for name, tensor in sent.items()}
            added = update_of(client, sent)
            arrays = to_record({name: tensor + added[name] for name, tensor in sent.items()})
            metrics = MetricRecord({"num-examples": 1})
            content = RecordDict({"arrays": arrays, "metrics": metrics})
            replies.append(Message(content, reply_to=message))
        return replies


found: list[tuple[torch.Tensor, torch.Tensor]] = []


class Watching(SignFlip):
    """Keeps what the attacker knows."""

    def __call__(self, known, own):
        found.append((known.honest.clone(), own.clone()))
        return super().__call__(known, own)


def attacked(inner, held=dict):
    found.clear()
    return AttackGrid(inner, Watching(), MALICIOUS, True, lambda rows: rows.mean(0), 0, held)


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


@pytest.mark.parametrize(
    "noise", [{}, {"noise_down": 0.7}, {"snr_down": 3.0}], ids=["calm", "sigma", "snr"]
)
def test_each_client_is_judged_by_what_it_was_sent(noise):
    """Over noise each client has a model of its own, and the update is its step from there."""
    clients = Moving()
    serving = CohortGrid(clients, range(CLIENTS))
    grid = FaultGrid(attacked(serving), FaultsSection(**noise), seed=4)
    with serving.serving():
        asked = FedAvg().configure_train(2, to_record(MODEL), ConfigRecord(), grid)
        replies = list(grid.send_and_receive(list(asked)))
    apart = flat(clients.sent[0]) - flat(clients.sent[4])
    assert bool(apart.abs().max() > 0.1) == bool(noise)
    honest = torch.stack([
        flat(update_of(c, MODEL)) for c in range(CLIENTS) if c not in MALICIOUS
    ])  # fmt: skip
    assert len(found) == len(MALICIOUS)
    for client, (known, own) in zip(MALICIOUS, found, strict=True):
        torch.testing.assert_close(known, honest, rtol=0, atol=1e-12)
        torch.testing.assert_close(own, flat(update_of(client, MODEL)), rtol=0, atol=1e-12)
    for reply in replies:
        client = serving.directory.client(reply.metadata.src_node_id)
        sign = -1.0 if client in MALICIOUS else 1.0
        expected = flat(clients.sent[client]) + sign * flat(update_of(client, MODEL))
        arrived = flat(to_tensors(reply.content["arrays"]))
        torch.testing.assert_close(arrived, expected, rtol=0, atol=1e-12)


def test_what_clients_hold_and_are_not_sent_is_known_from_the_first_message_on():
    """After a restart all clients may hold a factor that they train."""
    kept = {"b": MODEL["b"]}
    serving = CohortGrid(Moving(kept), range(CLIENTS))
    grid = attacked(serving, lambda: MODEL)
    with serving.serving():
        messages = [
            Message(
                RecordDict({"arrays": to_record({"a": MODEL["a"]}),
                            "config": ConfigRecord({"server-round": 9})}),
                serving.directory.node(client),
                MessageType.TRAIN,
            )
            for client in range(CLIENTS)
        ]  # fmt: skip
        list(grid.send_and_receive(messages))
    for client, (_, own) in zip(MALICIOUS, found, strict=True):
        torch.testing.assert_close(own, flat(update_of(client, MODEL)), rtol=0, atol=1e-12)


def test_a_strategy_offers_what_it_sends_and_what_clients_hold():
    strategy = RoLoRA(clients_remember=True)
    model = {A: torch.ones(2, 5), B: torch.zeros(3, 2)}
    serving = CohortGrid(Moving(), range(CLIENTS))
    with serving.serving():
        for number in (1, 2):
            asked = strategy.configure_train(number, to_record(model), ConfigRecord(), serving)
            sent = to_tensors(next(iter(asked)).content["arrays"])
            assert strategy.downlink.tensors.keys() == {A, B}
            strategy.downlink.arrived(range(CLIENTS))
    assert sent.keys() < {A, B}
