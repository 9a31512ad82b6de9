"""How good the global tensors are: on the server's test split, or by the clients."""

from __future__ import annotations

from flwr.app import ConfigRecord, Message
from torch import Tensor

from fedtune.grids.arrays import to_record
from fedtune.runs.build import Federation


def evaluate(
    federation: Federation, arrays: dict[str, Tensor], server_round: int
) -> dict[str, float]:
    """Mean loss and metrics: centrally on the test split, or by the clients of local heads."""
    task = federation.task
    if federation.scenario.task.head != "local":
        if not len(task.test_rows):
            return {}
        found = federation.engine.evaluate(arrays, task.test, task.test_rows)
        if task.exact_match is not None:
            found["exact_match"] = federation.engine.generate(arrays, task.exact_match)
        found.update(_attack_success(federation, arrays))
        return found
    record = federation.strategy.aggregate_evaluate(
        server_round, ask_clients(federation, arrays, server_round)
    )
    return {name: float(value) for name, value in (record or {}).items()}  # type: ignore[arg-type]


def _attack_success(federation: Federation, arrays: dict[str, Tensor]) -> dict[str, float]:
    """How often a backdoor's trigger leads to its target, over test examples of other classes."""
    adversary = federation.adversary
    if adversary.triggered is None or adversary.triggered_rows is None:
        return {}
    found = federation.engine.evaluate(arrays, adversary.triggered, adversary.triggered_rows)
    return {"attack_success": found["accuracy"]}


def ask_clients(
    federation: Federation, arrays: dict[str, Tensor], server_round: int
) -> list[Message]:
    """Replies of clients that evaluate the given tensors on what they hold out."""
    strategy, grid = federation.strategy, federation.grid
    messages = strategy.configure_evaluate(server_round, to_record(arrays), ConfigRecord(), grid)
    return list(grid.send_and_receive(messages))
