"""A private client's budget: how much noise its steps need, what it has spent, when it stops."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedtune.cohort.plan import planned_steps, sample_rate
from fedtune.errors import Declined, Incompatible
from fedtune.privacy.accounting import Spent, epsilon, noise_multiplier
from fedtune.privacy.example import ExampleNoise
from fedtune.privacy.ledger import Entry, Ledger
from fedtune.privacy.spending import exceeds, spent_epsilons
from fedtune.privacy.streams import Streams
from fedtune.scenario.local import LocalSection
from fedtune.scenario.privacy import PrivacySection


@dataclass(frozen=True)
class Terms:
    """What one participation of a client costs.

    Attributes:
        noise_multiplier: z of each step.
        sample_rate: q, chance of an example to be in a step.
        steps: of a round.
        participations: how many the budget is made for.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    participations: int

    @property
    def spent(self) -> Spent:
        """As the accountant takes it."""
        return Spent(self.noise_multiplier, self.sample_rate, self.steps)


class Budget:
    """Example-level budgets of clients.

    Args:
        section: the scenario's `[privacy]`.
        local: its `[local]`.
        data: name of the data set.
        ledger: what clients have spent.
        participations: how often each client is to take part at most.
        seed: of streams that can be had again; None: they are secret.
        opening_examples: of a client in what it sends before round 1; None: it sends nothing.
        limit: ε that a client itself allows on its data, whatever the scenario says.
    """

    def __init__(
        self,
        section: PrivacySection,
        local: LocalSection,
        data: str,
        ledger: Ledger,
        participations: Mapping[int, int],
        seed: int | None = None,
        opening_examples: int | None = None,
        limit: float | None = None,
    ) -> None:
        self.section, self.local, self.data, self.ledger = section, local, data, ledger
        self.participations, self.streams = participations, Streams(seed)
        self.run = uuid.uuid4().hex[:12]
        self.opening_examples, self.limit = opening_examples, limit

    def check(self, client: int, examples: int) -> None:
        """Refuse a δ that would let an example of this client be published.

        Raises:
            Incompatible: naming the client.
        """
        if self.section.delta >= 1.0 / examples:
            raise Incompatible(
                f"privacy.delta = {self.section.delta:g}: client {client} holds {examples} "
                f"examples; allowed: less than {1.0 / examples:.3g}"
            )

    def terms(self, client: int, examples: int) -> Terms:
        """What a round costs a client with so many examples."""
        section = self.section
        rate, steps = sample_rate(examples, self.local), planned_steps(examples, self.local)
        most = self.participations[client]
        if section.noise_multiplier is not None:
            return Terms(section.noise_multiplier, rate, steps, most)
        assert section.epsilon is not None
        z = noise_multiplier(
            section.epsilon,
            section.delta,
            rate,
            steps * most,
            section.accountant,
            before=self.opening(examples),
        )
        return Terms(z, rate, steps, most)

    def opening(self, examples: int) -> tuple[Spent, ...]:
        """What a client with so many examples spends before round 1, its share of ε."""
        if self.opening_examples is None:
            return ()
        section, rate = self.section, min(1.0, self.opening_examples / examples)
        z = section.noise_multiplier
        if z is None:
            assert section.epsilon is not None
            share = section.epsilon * section.opening_share
            z = noise_multiplier(share, section.delta, rate, 1, section.accountant)
        return (Spent(z, rate, 1),)

    def opening_noise(self, client: int, examples: int) -> ExampleNoise:
        """What protects it, charged.

        Raises:
            Declined: if that would exceed what the client may spend.
        """
        (spent,) = self.opening(examples)
        with self.ledger.locked():
            self._afford(client, spent)
            self.ledger.charge([self._entry(client, 0, spent)])
        z, rate = spent.noise_multiplier, spent.sample_rate
        return ExampleNoise(self.section.clip, z, rate, examples * rate, self.streams, (0, client))

    def afford(self, client: int, examples: int) -> Terms:
        """What another round costs a client.

        Raises:
            Declined: if that would exceed what it may spend.
        """
        terms = self.terms(client, examples)
        self._check_count(client, terms)
        self._afford(client, terms.spent)
        return terms

    def reserve(self, asked: Sequence[tuple[int, int, int]]) -> dict[int, Declined]:
        """Charge clients for a training, before they train; those that cannot pay, and why.

        What was charged stays so, whatever comes of the training: that it failed is told.

        Args:
            asked: (client, its examples, round), each client once.
        """
        declined, entries = {}, []
        with self.ledger.locked():
            for client, examples, server_round in asked:
                try:
                    terms = self.afford(client, examples)
                except Declined as reason:
                    declined[client] = reason
                    continue
                entries.append(self._entry(client, server_round, terms.spent))
            self.ledger.charge(entries)
        return declined

    def noise(self, client: int, examples: int, place: tuple[int, ...]) -> ExampleNoise:
        """What protects a client's steps."""
        terms = self.terms(client, examples)
        return ExampleNoise(
            self.section.clip,
            terms.noise_multiplier,
            terms.sample_rate,
            examples * terms.sample_rate,
            self.streams,
            place,
        )

    def _check_count(self, client: int, terms: Terms) -> None:
        trained = sum(entry.round > 0 for entry in self.ledger.entries(client, self.data))
        named = isinstance(self.section.max_participations, int)
        if self.section.epsilon is None and named and trained >= terms.participations:
            raise Declined(
                client, f"has taken part {trained} times; privacy.max_participations is that"
            )

    def _afford(self, client: int, more: Spent) -> None:
        section = self.section
        limits = [limit for limit in (section.epsilon, self.limit) if limit is not None]
        if not limits:
            return
        entries = self.ledger.entries(client, self.data)
        history = [*(entry.spent for entry in entries), more]
        after = epsilon(history, section.delta, section.accountant)
        if exceeds(after, min(limits)):
            raise Declined(
                client,
                f"its privacy budget is spent: ε would be {after:.3g} after another round, and "
                f"{min(limits):g} is allowed ({len(entries)} releases so far)",
            )

    def _entry(self, client: int, server_round: int, spent: Spent) -> Entry:
        z, rate, steps = spent.noise_multiplier, spent.sample_rate, spent.steps
        return Entry(client, self.data, self.run, server_round, z, rate, steps)

    def spent(self) -> dict[int, float]:
        """ε of every client that released something."""
        return spent_epsilons(self.section, self.data, self.ledger)

    def at_end(self, client: int, examples: int) -> float:
        """ε of a client that takes part as often as its budget is made for, spent before or not."""
        terms = self.terms(client, examples)
        whole = Spent(terms.noise_multiplier, terms.sample_rate, terms.steps * terms.participations)
        return epsilon(
            [*self.opening(examples), whole], self.section.delta, self.section.accountant
        )
