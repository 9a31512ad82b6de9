"""Cases of `[strategy]`: the names, and the parameters of every strategy."""

from __future__ import annotations

from typing import Any

from tests.kits.cases_training import SOME
from tests.kits.key_looks import Looks
from tests.kits.schema_keys import Case, Overrides
from tests.kits.schema_keys import case as plain

HALF = {"clients.participation.value": 0.5, "run.rounds": 3}
RARE = {"clients.participation.kind": "bernoulli", "clients.participation.value": 0.25,
        "run.rounds": 4}  # fmt: skip
UNKNOWN = {**SOME, "clients.participation.known": False, "run.rounds": 6}


def case(key: str, value: Any, scene: Overrides | None = None) -> Case:
    return plain(f"strategy.{key}", value, scene or {}, Looks.run)


def own(strategy: str, key: str, value: Any, scene: Overrides | None = None) -> Case:
    scene = {"strategy.name": strategy, **(scene or {})}
    return plain(f"strategy[{strategy}].{key}", value, scene, Looks.run)


STRATEGY = [
    case("name", "ffa-lora"),
    case("rule", "median"),
    case("rule.name", "median", {"strategy.rule": {"name": "mean"}}),
    case("pre", ["nnm"]),
    Case("strategy.pre.name", {"strategy.pre": [{"name": "bucketing"}]},
         {"strategy.pre": [{"name": "nnm"}]}, Looks.run),
    case("server_optimizer", "momentum"),
    case("server_optimizer.name", "adam", {"strategy.server_optimizer": {"name": "momentum"}}),
    case("f", 0, {"strategy.rule": "trimmed-mean"}),
    own("admm", "rho", 2.0),
    own("fedavg", "aggregation_error", True),
    own("fedavg-unbiased", "cutoff", 1, UNKNOWN),
    own("fedavg-unbiased", "most", 2.0, RARE),
    own("fedex-lora", "residual_rank", 1),
    own("fedprox", "mu", 0.5),
    own("fedstale", "beta", 1.0, HALF),
    own("fedstale", "cutoff", 1, UNKNOWN),
    own("fedstale", "most", 2.0, RARE),
    own("fedvarp", "cutoff", 1, UNKNOWN),
    own("fedvarp", "most", 2.0, RARE),
    own("fedsvd", "period", 2),
    own("fedsvd", "warmup", 1),
    own("flag", "m", 1),
    own("flag", "regularization", 2.0),
    own("flag", "iterations", 1),
    own("flag", "start", "random"),
    own("frl", "upload", 0.5),
    own("rerce", "rho", 2.0),
    own("rerce", "continual", True, HALF),
    own("rerce", "first", 2),
    own("rolora", "period", 2),
    own("scaffold", "gradient", True),
]  # fmt: skip
