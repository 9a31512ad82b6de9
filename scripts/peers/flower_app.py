"""The job as a plain Flower app.

Written as Flower's own fine-tuning example, but the base is kept by each process and not loaded
for every message. Flower draws its own clients, as many a round.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from job import Job
from torch import Tensor, nn

client_app, server_app = ClientApp(), ServerApp()
JOB_FOLDER = "PEER_JOB"


@cache
def loaded() -> tuple[Job, nn.Module]:
    """The job and its model, once a process."""
    torch.set_num_threads(1)
    job = Job(os.environ[JOB_FOLDER])
    return job, job.model()


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def put(model: nn.Module, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in trained(model).items():
            tensor.copy_(state[name])


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train from what was sent, and send what came of it."""
    job, model = loaded()
    told, rows = job.told, job.rows(int(context.node_config["partition-id"]))
    put(model, message.content["arrays"].to_torch_state_dict())
    parameters = [p for p in model.parameters() if p.requires_grad]
    if told["optimizer"] == "adamw":
        optimizer = torch.optim.AdamW(parameters, told["lr"], weight_decay=told["weight_decay"])
    else:
        optimizer = torch.optim.SGD(parameters, told["lr"])
    model.train()
    total, size, steps = 0.0, told["batch_size"], 0
    for _ in range(told["epochs"]):
        order = torch.randperm(len(rows[-1]))
        for start in range(0, len(order), size):
            batch = [tensor[order[start : start + size]] for tensor in rows]
            optimizer.zero_grad()
            loss = job.loss(model, batch)[0]
            loss.backward()
            optimizer.step()
            total, steps = total + float(loss.detach()), steps + 1
    metrics = {"train_loss": total / steps, "num-examples": len(rows[-1])}
    content = RecordDict({"arrays": ArrayRecord(trained(model)), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)


class Timed(FedAvg):
    """Tells when rounds end."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        found = super().aggregate_train(server_round, replies)
        loaded()[0].finished()
        return found


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    job, model = loaded()
    sampled, clients = job.told["sampled"], len(job.told["parts"])
    share = len(sampled[0]) / clients
    strategy = Timed(fraction_train=share, fraction_evaluate=0.0)
    job.begin()
    result = strategy.start(
        grid=grid, initial_arrays=ArrayRecord(trained(model)), num_rounds=len(sampled)
    )
    put(model, result.arrays.to_torch_state_dict())
    job.tell(job.accuracy(model))
