"""How often clients take part, as far as a budget must foresee it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedtune.participation import Participation
from fedtune.scenario import Scenario
from fedtune.tasks.clients import ClientRows

UNPREDICTABLE = ("clock", "trace")  # kinds without probabilities; who takes part is counted


def most_participations(
    scenario: Scenario, clients: ClientRows, taking_part: Participation
) -> dict[int, int]:
    """How often each client's budget lets it take part."""
    section, eligible = scenario.privacy, list(clients.eligible)
    if isinstance(section.max_participations, int):
        return dict.fromkeys(eligible, section.max_participations)
    rounds = planned_rounds(scenario)
    if taking_part.kind in UNPREDICTABLE:
        drawn = counted(taking_part, eligible, rounds)
        return {client: max(1, count) for client, count in drawn.items()}
    chances = taking_part.probabilities(eligible)
    return {
        client: likely_participations(float(chance), rounds)
        for client, chance in zip(eligible, chances, strict=True)
    }


def shares_of_rounds(
    taking_part: Participation, clients: Sequence[int], rounds: int
) -> dict[int, float]:
    """Of the rounds, the share in which each client takes part: its chance, or what is drawn."""
    if taking_part.kind in UNPREDICTABLE:
        drawn = counted(taking_part, clients, rounds)
        return {client: count / rounds for client, count in drawn.items()}
    chances = taking_part.probabilities(clients)
    return {client: float(chance) for client, chance in zip(clients, chances, strict=True)}


def planned_rounds(scenario: Scenario) -> int:
    """Rounds that ε is planned for."""
    rounds = scenario.privacy.rounds
    return rounds if isinstance(rounds, int) else scenario.run.rounds


def scheduled_rounds(scenario: Scenario) -> int:
    """Rounds that schedules over the rounds are made for."""
    rounds = scenario.local.schedule_rounds
    return rounds if isinstance(rounds, int) else scenario.run.rounds


def likely_participations(probability: float, rounds: int) -> int:
    """Rounds that a client hardly ever exceeds: the mean and three standard deviations."""
    mean = rounds * probability
    most = mean + 3.0 * math.sqrt(mean * (1.0 - probability))
    return max(1, min(rounds, math.ceil(most - 1e-9)))


def counted(taking_part: Participation, clients: Sequence[int], rounds: int) -> dict[int, int]:
    """In how many of the rounds from 1 on each client is drawn."""
    found = dict.fromkeys(clients, 0)
    for server_round in range(1, rounds + 1):
        for client in taking_part.draw(clients, server_round):
            found[client] += 1
    return found
