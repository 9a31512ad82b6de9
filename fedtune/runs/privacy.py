"""Privacy of a run: what is refused before anything is trained, and the clients' budgets."""

from __future__ import annotations

from pathlib import Path

from fedtune.adapters.kinds import find_kind
from fedtune.apps.budget import Budget, counted, likely_participations
from fedtune.errors import Incompatible, ScenarioError
from fedtune.participation import Participation
from fedtune.privacy.ledger import Ledger
from fedtune.scenario import Scenario
from fedtune.server.base import AdapterStrategy
from fedtune.tasks.clients import ClientRows

LEDGER = "ledger.jsonl"


def check_example_level(cls: type[AdapterStrategy], scenario: Scenario) -> None:
    """Refuse what example-level noise does not cover.

    Raises:
        Incompatible: with the reason, and what is allowed.
    """
    if scenario.privacy.mechanism != "example":
        return
    local, name = scenario.local, scenario.strategy.name
    why = "privacy.mechanism = 'example'"
    if cls.asks_gradients(scenario):
        raise Incompatible(
            f"strategy.name = {name!r}: its clients send what follows from gradients without "
            f"noise, which {why} does not cover"
        )
    if find_kind(scenario.adapter.kind).like == "rank" or scenario.adapter.kind == "rank":
        raise Incompatible(f"adapter.kind = 'rank': a vote is no sum that noise of {why} fits")
    if scenario.adapter.init in ("client-dense", "client-sketch", "pooled"):
        raise Incompatible(
            f"adapter.init = {scenario.adapter.init!r}: a gradient without noise would leave the "
            f"clients, which {why} does not cover; allowed: auto, random, public"
        )
    if scenario.clients.weights in ("reported", "capped") and not scenario.privacy.public_counts:
        raise Incompatible(
            f"clients.weights = {scenario.clients.weights!r}: numbers of examples are private "
            "unless privacy.public_counts = true; allowed: auto, uniform"
        )
    refused = [
        ("task.head", scenario.task.head == "local", "'local'", "its evaluation is not noised"),
        ("local.early_stopping", local.early_stopping is not None, "given", "watches the data"),
        ("local.group_by_length", local.group_by_length, "true", "batches are Poisson samples"),
        ("local.clip", local.clip is not None, str(local.clip), "privacy.clip is each example's"),
    ]
    for key, given, value, reason in refused:
        if given:
            raise Incompatible(f"{key} = {value}: {reason} under {why}; leave it out")


def make_budget(
    scenario: Scenario, clients: ClientRows, taking_part: Participation, folder: Path | None
) -> Budget | None:
    """The budgets of private clients, or None.

    Args:
        folder: the run directory, for the ledger of a run that names none.
    """
    section = scenario.privacy
    if section.mechanism != "example":
        return None
    assert scenario.task.data is not None
    path = Path(section.ledger) if section.ledger else folder / LEDGER if folder else None
    seed = scenario.run.seed if section.deterministic_randomness else None
    most = most_participations(scenario, clients, taking_part)
    return Budget(section, scenario.local, scenario.task.data, Ledger(path), most, seed)


def most_participations(
    scenario: Scenario, clients: ClientRows, taking_part: Participation
) -> dict[int, int]:
    """How often each client's budget lets it take part."""
    section, eligible = scenario.privacy, list(clients.eligible)
    if isinstance(section.max_participations, int):
        return dict.fromkeys(eligible, section.max_participations)
    rounds = planned_rounds(scenario)
    if taking_part.kind in ("clock", "trace"):
        return counted([taking_part.draw(eligible, r) for r in range(1, rounds + 1)], eligible)
    chances = taking_part.probabilities(eligible)
    return {
        client: likely_participations(float(chance), rounds)
        for client, chance in zip(eligible, chances, strict=True)
    }


def planned_rounds(scenario: Scenario) -> int:
    """Rounds that ε is planned for."""
    rounds = scenario.privacy.rounds
    return rounds if isinstance(rounds, int) else scenario.run.rounds


def check_deltas(budget: Budget, sizes: dict[int, int]) -> None:
    """Refuse a δ for the largest client, and whatever no noise can reach.

    Raises:
        ScenarioError: naming the client or the key.
    """
    if not sizes:
        raise ScenarioError("clients: none holds an example to train on")
    largest = max(sizes, key=lambda client: sizes[client])
    budget.check(largest, sizes[largest])
    budget.terms(largest, sizes[largest])
