"""DP-SGD in cohorts against training without privacy, and against Opacus one by one.

The small work of bench_engines: one frozen BERT encoder with random weights, LoRA r = 8 on query
and value, a trained head, AdamW, 4 local steps a client. All take turns within each repeat, after a
warm-up: the cohort without privacy; the cohort with it (per-example gradients made, their norms
only, or what is cheaper, tensor by tensor); and Opacus's own PrivacyEngine, wrapped once, on the
same PEFT model for one client after another, on the batches that the cohort takes. Writes a table.

    .venv/bin/python scripts/bench_private.py                    # about 5 minutes on 2 CPU cores
    .venv/bin/python scripts/bench_private.py --device cuda --widths 384 --clients 128
"""

from __future__ import annotations

import argparse
import platform
import statistics
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench_engines import DTYPES, STEPS, Shape, make_engine, make_setting, make_works, seconds
from opacus import PrivacyEngine
from torch.nn import functional as F

from fedtune.adapters.layout import load_tensors
from fedtune.cohort.backend import Setting
from fedtune.cohort.plan import ClientWork, plan_work, sample_rate
from fedtune.cohort.together import CohortBackend
from fedtune.privacy.example import ExampleNoise
from fedtune.privacy.streams import Streams

OUT = Path(__file__).parent.parent / "docs" / "benchmarks" / "private.md"
WAYS = ("hooks", "ghost", "auto")
CLIP, NOISE = 1.0, 1.0


def private_works(setting: Setting, count: int) -> list[ClientWork]:
    state = {s.name: setting.adapted.initial[s.name] for s in setting.layout.trained}
    rows, rate = np.arange(len(setting.data)), sample_rate(len(setting.data), setting.local)
    found = []
    for client in range(count):
        noise = ExampleNoise(CLIP, NOISE, rate, len(rows) * rate, Streams(), (1, client))
        found.append(plan_work(client, 1, rows, state, setting.local, 0, noise=noise))
    return found


class Opacus:
    """One client after another on one wrapped model."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.model = setting, setting.adapted.model.train()
        layout = setting.layout
        self.trained = [self.model.get_parameter(spec.parameter) for spec in layout.trained]
        for parameter in self.model.parameters():
            parameter.requires_grad_(any(parameter is one for one in self.trained))
        batch = setting.local.batch_size
        optimizer = torch.optim.AdamW(self.trained, lr=setting.local.lr)
        loader = torch.utils.data.DataLoader(setting.data.targets.cpu().view(-1, 1), batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.wrapped, self.optimizer, _ = PrivacyEngine().make_private(
                module=self.model, optimizer=optimizer, data_loader=loader,
                noise_multiplier=NOISE, max_grad_norm=CLIP)  # fmt: skip

    def train(self, works: list[ClientWork]) -> None:
        setting = self.setting
        for work in works:
            load_tensors(self.model, setting.layout.trained, work.state)
            self.optimizer.original_optimizer.state.clear()
            for step in work.steps:
                self.optimizer.zero_grad()
                rows = np.concatenate(step) if step else np.arange(1)
                batch = setting.data.gather(torch.from_numpy(rows).to(setting.device))
                logits = self.wrapped(**batch.inputs).logits
                F.cross_entropy(logits, batch.labels).backward()
                self.optimizer.step()


def measure(shape: Shape, clients: int, arguments: argparse.Namespace) -> list[str]:
    setting = make_setting(shape, arguments.device, arguments.precision)
    cohort = CohortBackend(setting)
    open_, hidden = make_works(setting, clients), private_works(setting, clients)
    engine = make_engine(cohort, clients)
    opacus = Opacus(make_setting(shape, arguments.device, arguments.precision))

    def private(way: str) -> Callable[[], object]:
        def train() -> object:
            cohort.setting = replace(setting, per_example=way)
            return engine.train(hidden, 1)

        return train

    tasks: dict[str, tuple[Callable[[], object], int]] = {
        "without": (lambda: engine.train(open_, 1), clients),
        **{way: (private(way), clients) for way in WAYS},
        "opacus": (lambda: opacus.train(hidden[: arguments.alone]), arguments.alone),
    }
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(arguments.repeats + 1):
        for name, (work, count) in tasks.items():
            spent = seconds(work, arguments.device) / count
            if repeat:
                times[name].append(spent)
    rates = {name: 1.0 / statistics.median(found) for name, found in times.items()}

    def ratio(other: str) -> str:
        found = [b / a for a, b in zip(times["auto"], times[other], strict=True)]
        return f"{statistics.median(found):.2f} ({min(found):.2f}–{max(found):.2f})"

    row = [str(shape.width), str(shape.batch), str(clients)]
    row += [f"{rates[name]:.1f}" for name in tasks] + [ratio("without"), ratio("opacus")]
    print(" | ".join(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=list(DTYPES), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", type=int, default=4, help="clients timed with Opacus")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    headings = [
        "hidden", "batch", "clients", "without privacy /s", "hooks /s", "ghost /s", "auto /s",
        "Opacus, one by one /s", "auto : without", "auto : Opacus",
    ]  # fmt: skip
    rows = [
        measure(Shape(width, 2, batch, arguments.tokens), clients, arguments)
        for width in arguments.widths
        for batch in arguments.batches
        for clients in arguments.clients
    ]
    lines = [
        "| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows)
    ]
    device = torch.cuda.get_device_name() if arguments.device != "cpu" else platform.machine()
    about = (
        f"Clients a second, {STEPS} steps each; ratios with their least and greatest over "
        f"{arguments.repeats} repeats. {device}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {arguments.precision}, {arguments.tokens} tokens."
    )
    arguments.out.write_text(f"{about}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
