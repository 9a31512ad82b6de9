"""The budget of a server that adds the noise of user-level privacy."""

from __future__ import annotations

import uuid
from dataclasses import replace

from fedtune.errors import RunError
from fedtune.privacy.accounting import Spent, epsilon
from fedtune.privacy.ledger import Entry, Ledger
from fedtune.privacy.spending import SERVER, exceeds
from fedtune.scenario.privacy import PrivacySection


class UserBudget:
    """What a server's rounds cost every client together.

    Args:
        section: the scenario's `[privacy]`.
        data: name of the data set.
        ledger: what rounds have cost.
        round: the mechanism of one round.
    """

    def __init__(self, section: PrivacySection, data: str, ledger: Ledger, round: Spent) -> None:
        self.section, self.data, self.ledger, self.round = section, data, ledger, round
        self.run = uuid.uuid4().hex[:12]

    def spent(self, more: int = 0) -> float:
        """ε so far, and after so many more rounds."""
        entries = self.ledger.entries(SERVER, self.data)
        history = [*(entry.spent for entry in entries), replace(self.round, steps=more)]
        return epsilon(history, self.section.delta, self.section.accountant)

    def reserve(self, server_round: int) -> None:
        """Charge a round, before anybody trains for it.

        Raises:
            RunError: if it would exceed ε, saying what is spent.
        """
        with self.ledger.locked():
            limit, after = self.section.epsilon, self.spent(1)
            if exceeds(after, limit):
                raise RunError(
                    f"round {server_round}: the privacy budget is spent: ε would be {after:.3g}, "
                    f"and privacy.epsilon is {limit:g}; finished rounds stay as they are"
                )
            z, rate, kind = self.round.noise_multiplier, self.round.sample_rate, self.round.sampling
            self.ledger.charge([Entry(SERVER, self.data, self.run, server_round, z, rate, 1, kind)])
