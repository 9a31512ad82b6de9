"""Cases of `[privacy]`, `[attack]`, `[faults]`, `[engine]` and `[run]`."""

from __future__ import annotations

from typing import Any

from tests.kits.cases_task import TEXT
from tests.kits.cases_training import UNEVEN
from tests.kits.key_looks import Looks
from tests.kits.schema_keys import Case, Overrides
from tests.kits.schema_keys import case as plain


def case(key: str, value: Any, scene: Overrides | None = None) -> Case:
    return plain(key, value, scene or {}, Looks.run)


SEEDED = {"privacy.delta": 1e-3, "privacy.deterministic_randomness": True}
NOISED = {**SEEDED, "privacy.mechanism": "example", "privacy.noise_multiplier": 1.0}
BUDGET = {**SEEDED, "privacy.mechanism": "example", "privacy.epsilon": 3.0}
ASKED = {**BUDGET, "strategy.name": "fed-sb", "adapter.init": "client-dense",
         "adapter.init_step": 0.1}  # fmt: skip
USER = {**SEEDED, "privacy.delta": 0.1, "privacy.mechanism": "user",
        "privacy.noise_multiplier": 0.1,
        "privacy.adaptive": {"quantile": 0.5, "rate": 0.2, "count_noise": "auto"}}  # fmt: skip
PRIVACY = [
    plain("privacy.mechanism", "example", SEEDED, Looks.run, {"privacy.noise_multiplier": 1.0}),
    case("privacy.epsilon", 6.0, BUDGET),
    case("privacy.noise_multiplier", 2.0, NOISED),
    case("privacy.delta", 1e-4, NOISED),
    case("privacy.clip", 0.1, NOISED),
    case("privacy.accountant", "prv", NOISED),
    case("privacy.max_participations", 1, NOISED),
    case("privacy.rounds", 8, BUDGET),
    case("privacy.opening_share", 0.5, ASKED),
    case("privacy.per_example", "ghost", {**NOISED, "privacy.per_example": "hooks"}),
    case("privacy.public_counts", True, {**NOISED, **UNEVEN}),
    case("privacy.adaptive.quantile", 0.9, USER),
    case("privacy.adaptive.rate", 1.0, USER),
    case("privacy.adaptive.count_noise", 2.0, USER),
    case("privacy.ledger", "FILES/ledger.jsonl", NOISED),
]

FLIPPED = {"attack.kind": "label-flip", "attack.fraction": 0.5}
MAPPED = {"attack.kind": "cat-map", "attack.fraction": 0.5}
BACKDOOR = {"attack.kind": "backdoor", "attack.fraction": 0.5}
ATTACK = [
    case("attack.kind", "sign-flip", {"attack.fraction": 0.5}),
    case("attack.fraction", 0.5, {"attack.kind": "sign-flip", "attack.fraction": 0.25}),
    case("attack.knowledge", "own", {"attack.kind": "ipm", "attack.fraction": 0.5}),
    case("attack[label-flip].share", 0.5, FLIPPED),
    case("attack[cat-map].share", 0.5, MAPPED),
    case("attack[cat-map].iterations", 2, MAPPED),
    case("attack[backdoor].target", 1, BACKDOOR),
    case("attack[backdoor].size", 2, BACKDOOR),
    case("attack[backdoor].share", 1.0, BACKDOOR),
    case("attack[backdoor].token", 9, {**TEXT, **BACKDOOR}),
]

FAULTS = [
    case("faults.dropout", 0.5, {"run.rounds": 3}),
    case("faults.trace", "FILES/first-trace.csv"),
    case("faults.late", 0.5, {"run.rounds": 3}),
    case("faults.duplicate", 1.0),
    case("faults.corrupt", 1.0),
    case("faults.deadline", 0.8),
    case("faults.spread", 0.0, {"faults.deadline": 1.0}),
    case("faults.noise_down", 0.1),
    case("faults.noise_up", 0.1),
    case("faults.snr_down", 10.0),
    case("faults.snr_up", 10.0),
]

ENGINE = [
    case("engine.kind", "sequential"),
    case("engine.cohort_size", 2),
    case("engine.precision", "float64"),
    case("engine.threads", 2),
]

STOPPING = {"run.rounds": 4, "local.lr": 0.01,
            "run.early_stopping": {"patience": 1, "min_delta": 10.0}}  # fmt: skip
RUN = [
    case("run.rounds", 3),
    case("run.seed", 1),
    case("run.eval_every", 2),
    case("run.checkpoint_every", 2),
    case("run.early_stopping.patience", 2, STOPPING),
    case("run.early_stopping.min_delta", 0.0, STOPPING),
]
