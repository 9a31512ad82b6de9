"""The jobs of scripts/bench_peers.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Work:
    """One job.

    Attributes:
        says: what it is, for the table.
        overrides: of the scenario quickstart.
        network: trained whole from random weights, where it has no adapter: (side, channels).
        curve: images a client, of the jobs that the curve goes through.
    """

    says: str
    overrides: dict[str, Any] = field(default_factory=dict)
    network: tuple[int, int] | None = None
    curve: int | None = None


LORA = {
    "clients.partition": {"kind": "iid"}, "adapter.dropout": 0.0, "local.lr": 1e-3,
    "run.rounds": 8, "run.eval_every": 8, "run.checkpoint_every": 8,
}  # fmt: skip
DIGITS = {**LORA, "task.train_examples": 1200}
TEXT = {
    **LORA, "task.kind": "text-classification", "task.base": "builtin:bert-words",
    "task.data": "builtin:intents", "local.lr": 5e-3,
}  # fmt: skip


def clients(count: int, share: float, batch: int, epochs: int = 1) -> dict[str, Any]:
    return {
        "clients.count": count, "clients.participation.value": share, "local.batch_size": batch,
        "local.epochs": epochs,
    }  # fmt: skip


JOBS = {
    "vit-2": Work(
        "ViT of the quickstart, LoRA r = 8, one step of 2 images a client, 100 clients a round",
        {**DIGITS, **clients(600, 1 / 6, 2)},
        curve=2,
    ),
    "vit-6": Work(
        "the same, 6 images a client in batches of 2, 50 clients a round",
        {**DIGITS, **clients(200, 0.25, 2)},
        curve=6,
    ),
    "vit-24": Work(
        "the same, 24 images a client in batches of 8, 25 clients a round",
        {**DIGITS, **clients(50, 0.5, 8)},
        curve=24,
    ),
    "vit-60": Work(
        "the same, 60 images a client in batches of 20, 10 clients a round",
        {**DIGITS, **clients(20, 0.5, 20)},
        curve=60,
    ),
    "tiny-bert": Work(
        "BERT of the builtin words, LoRA r = 8, requests in batches of 2",
        {**TEXT, **clients(200, 0.25, 2)},
    ),
    "cnn": Work(
        "CNN of 2 convolutions trained whole with SGD, 50 images of 3 x 32 x 32 a client in "
        "batches of 10, 50 clients a round",
        {
            **LORA, **clients(200, 0.25, 10), "task.data": "builtin:synthetic",
            "clients.examples": 50, "adapter.kind": "none", "local.optimizer": "sgd",
            "local.lr": 0.02,
        },
        (32, 3),
    ),
}  # fmt: skip
