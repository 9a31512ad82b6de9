"""What all sides of scripts/bench_peers.py share: the job, as files that need no fedtune.

job.json    hyperparameters, clients' rows, who is sampled in which round
data.pt     train and test tensors, labels last
model/      the base with its head, a Transformers folder
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn


class Job:
    """A job that was exported to a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.told: dict[str, Any] = json.loads((self.folder / "job.json").read_text("utf-8"))
        data = torch.load(self.folder / "data.pt")
        self.train, self.test = data["train"], data["test"]
        self.names: list[str] = data["names"]
        self.initial: dict[str, Tensor] = data["initial"]
        self.ends: list[float] = []
        self.ready = 0.0

    def rows(self, client: int) -> list[Tensor]:
        """A client's examples: inputs and, last, labels."""
        index = torch.as_tensor(self.told["parts"][client])
        return [tensor[index] for tensor in self.train]

    def model(self) -> nn.Module:
        """The base, with its adapter where the job has one; what is trained requires a gradient."""
        from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

        if self.told["network"]:
            from fedtune.tasks.conv import ConvForImageClassification as Auto
        elif "pixel_values" in self.names:
            Auto = AutoModelForImageClassification
        else:
            Auto = AutoModelForSequenceClassification
        torch.manual_seed(0)
        base = Auto.from_pretrained(self.folder / "model")
        lora = self.told["lora"]
        model = base if lora is None else get_peft_model(base, LoraConfig(**lora))
        with torch.no_grad():
            for name, tensor in self.initial.items():
                model.get_parameter(name).copy_(tensor)
        return model

    def loss(self, model: nn.Module, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of a batch, and its logits; padding beyond the longest is cut."""
        *inputs, labels = batch
        given = dict(zip(self.names, inputs, strict=True))
        if "attention_mask" in given:
            longest = int(given["attention_mask"].sum(1).max())
            given = {name: tensor[:, :longest] for name, tensor in given.items()}
        logits = model(**given).logits
        return nn.functional.cross_entropy(logits, labels), logits

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Of the test split."""
        model.eval()
        labels = self.test[-1]
        hits = 0
        for start in range(0, len(labels), 256):
            batch = [tensor[start : start + 256] for tensor in self.test]
            hits += int((self.loss(model, batch)[1].argmax(1) == batch[-1]).sum())
        return hits / len(labels)

    def begin(self) -> None:
        """Everything is loaded; the first round begins."""
        self.ready = time.time()

    def finished(self) -> None:
        """A round ended."""
        self.ends.append(time.time())

    def tell(self, accuracy: float, **more: Any) -> None:
        """The last line of a side's output."""
        found = {"ready": self.ready, "ends": self.ends, "accuracy": accuracy, **more}
        sys.stdout.write(f"\n{json.dumps(found)}\n")
        sys.stdout.flush()


def read_job() -> Job:
    """The job of the folder that the command names; torch gets as many threads as it may have."""
    torch.set_num_threads(int(os.environ.get("PEER_THREADS", os.cpu_count() or 1)))
    return Job(sys.argv[1])
