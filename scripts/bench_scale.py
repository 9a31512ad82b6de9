"""What many clients cost: start to round 1, a round by registered clients, overhead of a message.

*overhead* is a whole round (sampling, messages, work plans, replies, aggregation) with training
left out: the engine answers with the tensors that it was sent. Writes docs/benchmarks/scale.json.

    .venv/bin/python scripts/bench_scale.py
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from fedtune.adapters.packed import Packed
from fedtune.cohort.engine import Engine
from fedtune.cohort.plan import ClientResult
from fedtune.runs.build import Federation, build
from fedtune.runs.loop import one_round, start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario

OUT = Path(__file__).parent.parent / "docs" / "benchmarks" / "scale.json"


def scenario_of(count: int, sampled: int, strategy: str = "fedavg", **more: Any) -> Any:
    return settle_paths(
        load_scenario(
            "quickstart",
            {
                "task.data": "builtin:synthetic", "clients.count": count, "clients.examples": 8,
                "clients.partition": {"kind": "iid"}, "local.batch_size": 8, "local.steps": 1,
                "clients.participation.value": sampled / count, "run.eval_every": 1000,
                "run.rounds": 1000, "strategy.name": strategy, **more,
            },
        )
    )  # fmt: skip


def first_round(count: int) -> dict[str, float]:
    """Seconds from a scenario to the end of round 1 of 100 clients, with libraries imported."""
    started = time.perf_counter()
    federation = build(scenario_of(count, 100))
    state = start_state(federation, None)
    with federation.serving.serving():
        one_round(federation, state, 1)
        first = time.perf_counter() - started
        rounds = []
        for server_round in range(2, 7):
            began = time.perf_counter()
            one_round(federation, state, server_round)
            rounds.append(time.perf_counter() - began)
    return {"clients": count, "to_round_1_s": first, "round_s": statistics.median(rounds)}


def without_training(federation: Federation) -> None:
    """Let the engine answer at once, each client with a row of one matrix, as cohorts do."""
    layout = federation.engine.setting.layout

    def train(works: Any, server_round: int) -> dict[int, ClientResult]:
        rows = (layout.flatten(works[0].state) + 1.0).repeat(len(works), 1)
        return {
            w.client: ClientResult(w.client, Packed(layout.places, row), 1.0, 1, w.examples)
            for w, row in zip(works, rows, strict=True)
        }

    engine: Engine = federation.engine
    engine.train = train  # type: ignore[method-assign, assignment]


def overhead(count: int, sampled: int, strategy: str) -> dict[str, Any]:
    federation = build(scenario_of(count, sampled, strategy))
    without_training(federation)
    state = start_state(federation, None)
    with federation.serving.serving():
        seconds = []
        for server_round in range(1, 7):
            began = time.perf_counter()
            line = one_round(federation, state, server_round)
            seconds.append((time.perf_counter() - began) / line["clients"] * 1e3)
    return {
        "strategy": strategy, "clients": count, "sampled": sampled,
        "ms_per_client": statistics.median(seconds[1:]), "least": min(seconds[1:]),
        "most": max(seconds[1:]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    rounds = [first_round(count) for count in (10_000, 1_000_000)]
    costs = [overhead(1_000_000, 1000, name) for name in ("fedavg", "ffa-lora")]
    found = {
        "machine": platform.processor() or platform.machine(),
        "rounds": rounds,
        "overhead": costs,
    }
    for row in [*rounds, *costs]:
        print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
