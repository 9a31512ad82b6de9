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
IMAGES = 1200
DIGITS = {**LORA, "task.train_examples": IMAGES}
TEXT = {
    **LORA, "task.kind": "text-classification", "task.base": "builtin:bert-words",
    "task.data": "builtin:intents", "local.lr": 5e-3,
}  # fmt: skip


def clients(count: int, share: float, batch: int) -> dict[str, Any]:
    return {
        "clients.count": count, "clients.participation.value": share, "local.batch_size": batch,
        "local.epochs": 1,
    }  # fmt: skip


def vit(images: int, batch: int, sampled: int) -> Work:
    """Clients of so many images each, so many of them a round."""
    says = (
        f"ViT of the quickstart, LoRA r = 8, {images} images a client in batches of {batch}, "
        f"{sampled} clients a round"
    )
    shared = clients(IMAGES // images, sampled * images / IMAGES, batch)
    return Work(says, {**DIGITS, **shared}, curve=images)


JOBS = {
    "vit-2": vit(2, 2, 100),
    "vit-6": vit(6, 2, 50),
    "vit-24": vit(24, 8, 25),
    "vit-60": vit(60, 20, 10),
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
