"""Equal budgets: how many rounds a scenario can afford, known before it is trained."""

from __future__ import annotations

from collections.abc import Iterator

from fedtune.cohort.plan import planned_steps
from fedtune.errors import Incompatible, ScenarioError
from fedtune.runs.build import Federation, build
from fedtune.runs.traffic import client_payload, opening_bytes
from fedtune.scenario import Scenario
from fedtune.scenario.compare import BudgetSection
from fedtune.tasks.library import Library

MOST_ROUNDS = 100_000


def spent(scenario: Scenario, kind: str, library: Library) -> int:
    """What a scenario spends in `run.rounds`: payload bytes up, or optimiser steps of clients."""
    costs = _costs(build(scenario, library=library), kind)
    return sum(next(costs) for _ in range(scenario.run.rounds))


def within(scenario: Scenario, budget: BudgetSection, amount: int, library: Library) -> Scenario:
    """The scenario with as many rounds as the budget pays for; the next would exceed it.

    Args:
        scenario: settled but for what follows from `run.rounds`, its own of which do not count.
        budget: says what is counted.
        amount: bytes or steps.

    Raises:
        ScenarioError: if it does not pay for one round.
    """
    total, rounds = 0, 0
    for cost in _costs(build(scenario, library=library), budget.kind):
        if total + cost > amount or rounds == MOST_ROUNDS:
            break
        total, rounds = total + cost, rounds + 1
    if not rounds:
        raise ScenarioError(
            f"--budget {budget.kind}={amount}: does not pay for one round of "
            f"{scenario.strategy.name}, which takes {cost}"
        )
    section = scenario.run.model_copy(update={"rounds": rounds})
    return scenario.model_copy(update={"run": section})


def _costs(federation: Federation, kind: str) -> Iterator[int]:
    """The cost of round 1, 2, ...: who takes part is a pure function of the seed."""
    if kind == "client_steps" and federation.strategy.sends_iterates:
        raise Incompatible(
            f"--budget client_steps: {federation.strategy.name!r} trains more than once a round"
        )
    clients, draw = federation.task.clients.eligible, federation.strategy.participation.draw
    server_round, before = 0, opening_bytes(federation)[1]
    while True:
        server_round += 1
        taking_part = draw(clients, server_round)
        if kind == "bytes_up":
            yield before + client_payload(federation, server_round) * len(taking_part)
            before = 0
            continue
        local, rows = federation.scenario.local, federation.clients.training_rows
        yield sum(planned_steps(len(rows(client)), local) for client in taking_part)
