"""Cases of `[compare]`: what is planned of a comparison, and the verdict on a claim."""

from __future__ import annotations

from typing import Any

from tests.kits.key_looks import Looks
from tests.kits.schema_keys import Case, Overrides
from tests.kits.schema_keys import case as plain

OVER = {"compare.over": {"strategy.name": ["fedavg", "ffa-lora"]}, "compare.seeds": 1}
TUNED = {**OVER, "compare.tune": {"local.lr": [0.1, 0.2]}}
BYTES = {**OVER, "compare.budget.kind": "bytes_up"}
WORST = {
    "compare.over": {"strategy.name": ["fedavg"], "attack.kind": ["none", "sign-flip"]},
    "compare.tune": {"local.lr": [0.1, 0.2]}, "compare.seeds": 1,
}  # fmt: skip


def case(key: str, value: Any, scene: Overrides) -> Case:
    return plain(f"compare.{key}", value, scene, Looks.grid)


def part(**changes: Any) -> dict[str, Any]:
    """Of a claim on the families of `key_looks.RESULTS`."""
    sides = {"left": {"strategy.name": "new"}, "right": {"strategy.name": "old"}}
    return {"says": "new is better", **sides, **changes}


def claimed(key: str, value: Any, **scene: Any) -> Case:
    def claim(**changes: Any) -> dict[str, Any]:
        parts = [part(**{**scene, **changes})]
        return {"compare.claim": {"paper": "a paper", "says": "a claim", "parts": parts}}

    return Case(f"compare.claim.parts.{key}", claim(), claim(**{key: value}), Looks.claim)


COMPARE = [
    case("over", {"strategy.name": ["fedavg", "fedprox"]}, OVER),
    case("variants", {"wide": {"adapter.rank": 4}}, OVER),
    case("seeds", 2, OVER),
    case("tune", {"local.lr": [0.1, 0.3]}, TUNED),
    case("tune_seeds", 2, TUNED),
    case(
        "tune_at", {"attack.kind": ["sign-flip"]}, {**WORST, "compare.worst_over": ["attack.kind"]}
    ),
    case("worst_over", ["attack.kind"], WORST),
    case("validation", 0.4, TUNED),
    case("budget.kind", "bytes_up", OVER),
    case("budget.amount", 60_000, {**BYTES, "compare.budget.amount": 120_000}),
    case("reference", {"strategy.name": "ffa-lora"}, OVER),
    case("metric", "loss", OVER),
    claimed("left", {"strategy.name": "new", "rate": "a"}),
    claimed("right", {"strategy.name": "new", "rate": "b"}),
    claimed("measure", "bytes_up"),
    claimed("across", "best"),
    claimed("test", "no-worse", margin=0.02),
    claimed("margin", 0.5, test="no-worse", margin=0.001),
    claimed("between", [2.0, 3.0], test="ratio", between=[0.5, 1.5]),
    claimed("less_is_better", True),
]
