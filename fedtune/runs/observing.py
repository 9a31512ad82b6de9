"""What is told of a run while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

Line = dict[str, Any]


@dataclass(frozen=True)
class Started:
    """What is known of a run before its first round.

    Attributes:
        strategy: its name.
        adapter: its kind.
        clients: how many hold examples.
        parameters: trained by each.
        engine: what trains them, and
        device: where.
        notes: lines that the user should see.
        rounds: the last round.
        first_round: the first one to run.
        initial: the evaluation before round 1.
    """

    strategy: str
    adapter: str
    clients: int
    parameters: int
    engine: str
    device: str
    notes: list[str]
    rounds: int
    first_round: int
    initial: dict[str, float]


class Observer(Protocol):
    """Shows a run; the default shows nothing."""

    def started(self, run: Started) -> None:
        """Before the first round to run."""

    def finished_round(self, line: Line) -> None:
        """After each round, with its line of metrics.jsonl."""
