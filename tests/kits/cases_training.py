"""Cases of `[adapter]`, `[clients]` and `[local]`."""

from __future__ import annotations

from typing import Any

from tests.kits.cases_task import TEXT
from tests.kits.key_looks import Looks
from tests.kits.schema_keys import Case, Overrides
from tests.kits.schema_keys import case as plain


def case(key: str, value: Any, scene: Overrides | None = None) -> Case:
    return plain(key, value, scene or {}, Looks.run)


SB = {"strategy.name": "fed-sb", "adapter.init_examples": 4}
VOTE = {"strategy.name": "frl"}
SWIN = {"task.base": "FILES/swin", "adapter.targets": ["q_proj", "v_proj"],
        "adapter.layers_to_transform": [1]}  # fmt: skip
ADAPTER = [
    case("adapter.kind", "ffa"),
    case("adapter.rank", 3),
    case("adapter.alpha", 8.0),
    case("adapter.dropout", 0.5),
    case("adapter.targets", ["fc1"]),
    case("adapter.exclude_modules", ["v_proj"]),
    case("adapter.layers_to_transform", [0]),
    case("adapter.layers_pattern", "blocks", SWIN),
    case("adapter.modules_to_save", ["layernorm_before"]),
    case("adapter.rank_pattern", {"q_proj": 1}),
    case("adapter.alpha_pattern", {"q_proj": 2.0}),
    case("adapter.use_rslora", True),
    case("adapter.init", "client-dense", SB),
    case("adapter.init_examples", 8, SB),
    case("adapter.init_step", 0.5, SB),
    case("adapter.keep", 0.25, VOTE),
    case("adapter.constant", 0.2, VOTE),
    case("adapter.form", "signed", VOTE),
    case("adapter.by_magnitude", True, VOTE),
]

UNEVEN = {"clients.partition.kind": "linear"}
AUTHORS = {**TEXT, "clients.partition.kind": "natural", "clients.partition.by": "author"}
SOME = {"clients.participation.kind": "bernoulli", "clients.participation.value": 0.5}
CLOCK = {"clients.participation.kind": "clock", "run.rounds": 4}
TRACE = {"clients.participation.kind": "trace",
         "clients.participation.file": "FILES/first-trace.csv"}  # fmt: skip


def groups(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"share": share, "probability": probability} for share, probability in pairs]


HALVES = {"clients.participation.kind": "groups",
          "clients.participation.groups": groups((0.5, 1.0), (0.5, 0.0))}  # fmt: skip


def of_groups(key: str, *pairs: tuple[float, float]) -> Case:
    change = {"clients.participation.groups": groups(*pairs)}
    return Case(f"clients.participation.groups.{key}", HALVES, change, Looks.run)


CLIENTS = [
    case("clients.count", 5),
    plain("clients.partition.kind", "dirichlet", {}, Looks.run, {"clients.partition.alpha": 0.3}),
    case("clients.partition.by", "label", AUTHORS),
    case("clients.partition.pattern", "(.)$", AUTHORS),
    case("clients.participation.kind", "bernoulli",
         {"clients.participation.value": 0.5, "run.rounds": 4}),
    case("clients.participation.value", 0.5),
    of_groups("share", (0.25, 1.0), (0.75, 0.0)),
    of_groups("probability", (0.5, 1.0), (0.5, 1.0)),
    case("clients.participation.known", False,
         {**SOME, "strategy.name": "fedavg-unbiased", "run.rounds": 3}),
    case("clients.participation.spread", 0.0, CLOCK),
    case("clients.participation.file", "FILES/later-trace.csv", TRACE),
    case("clients.weights", "uniform", UNEVEN),
    case("clients.max_weight", 5, {**UNEVEN, "clients.weights": "capped"}),
    case("clients.examples", 12, {"task.data": "builtin:synthetic", "clients.examples": 8}),
    case("clients.holdout", 0.5),
]  # fmt: skip

ADAM = {"local.optimizer": "adamw", "local.lr": 0.01}
PATIENT = {"local.epochs": 4, "local.batch_size": 12, "local.lr": 0.01,
           "local.early_stopping": {"patience": 1, "min_delta": 10.0}}  # fmt: skip
LOCAL = [
    case("local.steps", 3),
    case("local.epochs", 2, {"local.epochs": 1}),
    case("local.batch_size", 6),
    case("local.accumulation", 2),
    case("local.group_by_length", True, TEXT),
    case("local.optimizer", "adam"),
    case("local.lr", 0.05),
    case("local.momentum", 0.9),
    case("local.client_momentum", 0.5),
    case("local.betas", [0.5, 0.9], ADAM),
    case("local.eps", 1e-2, ADAM),
    case("local.weight_decay", 0.1),
    case("local.clip", 1e-3),
    case("local.schedule", "linear"),
    case("local.warmup", 2),
    case("local.round_schedule", "linear"),
    case("local.schedule_rounds", 8, {"local.round_schedule": "linear"}),
    case("local.round_decay", 0.5, {"local.round_schedule": "exponential"}),
    case("local.early_stopping.patience", 2, PATIENT),
    case("local.early_stopping.min_delta", 0.0, PATIENT),
]
