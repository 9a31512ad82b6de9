"""`fedtune audit`: plant canaries, run the scenario, say how many of them show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedtune.adapters.layout import Tensors
from fedtune.audit.attacks import (
    by_alignment,
    by_loss,
    example_gradients,
)
from fedtune.audit.bound import Bound, bound
from fedtune.audit.canaries import Canaries, PlantedClients, plant
from fedtune.audit.tokens import token_presence
from fedtune.audit.uploads import Uploads
from fedtune.errors import Incompatible
from fedtune.privacy.streams import Streams
from fedtune.runs.build import Federation, build
from fedtune.runs.loop import one_round, start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.loading import Overrides
from fedtune.tasks.load import Task

CONFIDENCE, BLIND = 0.95, 1.0
Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Attack:
    """What one way of scoring shows.

    Attributes:
        name: what the adversary looks at.
        bound: how much it shows.
        scores: of each canary.
    """

    name: str
    bound: Bound
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        mechanism: of the scenario.
        promised: ε by the accountant at the end, None without a promise.
        delta: δ.
        canaries: how many, and
        included: which of them took part, (m,).
        attacks: on the run as it is, the strongest adversary first.
        control: the first of them on the same run without noise and bounds.
        tokens: AUC of telling a client's tokens from one upload, for text.
    """

    mechanism: str
    promised: float | None
    delta: float
    canaries: int
    included: NDArray[np.bool_]
    attacks: list[Attack]
    control: Attack
    tokens: float | None = None

    @property
    def verdict(self) -> str:
        """In a sentence."""
        shown = self.shown
        if self.promised is None:
            return f"no promise is made, and the run leaks ε of {shown:.2f} at least"
        if shown > self.promised:
            return (
                f"BROKEN: the run leaks ε of {shown:.2f} at least, and {self.promised:.3g} is "
                "promised"
            )
        without = self.control.bound.epsilon
        blind = "; this audit can see little: " if without < max(shown, BLIND) else ", "
        return (
            f"nothing found against the promise of ε = {self.promised:.3g}: {shown:.2f} at least "
            f"shows{blind}without noise {without:.2f} would"
        )

    @property
    def shown(self) -> float:
        """The largest ε that an attack shows; all of them together are wrong once in twenty."""
        return max(attack.bound.epsilon for attack in self.attacks)

    @property
    def broken(self) -> bool:
        """Whether the run leaks more than is promised."""
        return self.promised is not None and self.shown > self.promised

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON, without the scores."""
        told = {a.name: asdict(a.bound) for a in self.attacks}
        return {
            "mechanism": self.mechanism,
            "promised": self.promised,
            "delta": self.delta,
            "canaries": self.canaries,
            "included": int(self.included.sum()),
            "confidence": CONFIDENCE,
            "attacks": told,
            "control": asdict(self.control.bound),
            "tokens": self.tokens,
            "verdict": self.verdict,
        }


def audit(
    scenario: str | Path | Scenario,
    overrides: Overrides = (),
    canaries: int = 200,
    seed: int = 0,
    step: Step = lambda what, done, total: None,
) -> Audit:
    """How much a run leaks, against what it promises.

    Args:
        canaries: how many are planted; each takes part with probability 1/2.
        seed: of the canaries.
        step: told of each round.

    Raises:
        ScenarioError: for a scenario that cannot be audited, before anything is trained.
    """
    settled = settle_paths(load_scenario(scenario, overrides))
    if settled.privacy.ledger is not None:
        settled.privacy.ledger = None  # an audit spends nothing of anybody's
    if settled.engine.kind == "flower":
        raise Incompatible("engine.kind = 'flower': an audit looks at clients of its own process")
    if settled.engine.workers is not None:
        raise Incompatible(
            f"engine.workers = {settled.engine.workers!r}: an audit trains in its own process"
        )
    look = _audit_users if settled.privacy.mechanism == "user" else _audit_examples
    found, federation, included, tokens = look(settled, canaries, seed, "as it is", step)
    control = found
    if settled.privacy.mechanism != "none":
        control, *_ = look(without_noise(settled), canaries, seed, "without noise", step)
    budget = federation.budget
    spent = None if budget is None else budget.spent()
    promised = max(spent.values(), default=0.0) if isinstance(spent, Mapping) else spent
    return Audit(
        mechanism=settled.privacy.mechanism,
        promised=promised,
        delta=settled.privacy.delta,
        canaries=canaries,
        included=included,
        attacks=found,
        control=control[0],
        tokens=tokens,
    )


def without_noise(scenario: Scenario) -> Scenario:
    """The scenario with noise off, and nothing else changed."""
    if scenario.privacy.mechanism == "none":
        return scenario
    control = scenario.model_copy(deep=True)
    control.privacy.epsilon, control.privacy.noise_multiplier = None, 0.0
    return control


Looked = tuple[list[Attack], Federation, NDArray[np.bool_], float | None]


def _audit_examples(scenario: Scenario, count: int, seed: int, what: str, step: Step) -> Looked:
    planted: list[Canaries] = []

    def change(task: Task) -> Task:
        changed, own = plant(task, count, seed)
        planted.append(own)
        return changed

    federation = build(scenario, change=change)
    (canaries,) = planted
    watch = Uploads(federation, canaries)
    before, after = _rounds(federation, what, step)
    engine, layout = federation.engine, federation.adapted.layout
    gradients = example_gradients(engine, before, canaries.rows)
    moved = layout.flatten(after) - layout.flatten(before)
    scores = {
        **{name: scores.numpy() for name, scores in watch.scores.items()},
        "final model, by loss": by_loss(engine, after, canaries.rows),
        "final model, by gradient": by_alignment(gradients, moved),
    }
    delta = scenario.privacy.delta if scenario.privacy.mechanism == "example" else 0.0
    tokens = token_presence(federation, watch.first) if watch.first is not None else None
    return _attacks(scores, canaries.included, delta), federation, canaries.included, tokens


def _audit_users(scenario: Scenario, count: int, seed: int, what: str, step: Step) -> Looked:
    federation = build(scenario)
    strategy = federation.strategy
    assert strategy.mechanism is not None
    eligible = list(federation.task.clients.eligible)
    rate = strategy.participation.expected(eligible) / len(eligible)
    included = np.random.default_rng(seed).random(count) < 0.5
    planted = PlantedClients(strategy.mechanism, seed, included, rate, Streams(None))
    strategy.mechanism = planted  # type: ignore[assignment]
    _rounds(federation, what, step)
    scores = {"every released update, white box": planted.scores.numpy()}
    return _attacks(scores, included, scenario.privacy.delta), federation, included, None


def _attacks(
    scores: dict[str, NDArray[np.float64]], included: NDArray[np.bool_], delta: float
) -> list[Attack]:
    confidence = 1.0 - (1.0 - CONFIDENCE) / len(scores)  # so that the largest can be believed
    return [Attack(n, bound(s, included, delta, confidence), s) for n, s in scores.items()]


def _rounds(federation: Federation, what: str, step: Step) -> tuple[Tensors, Tensors]:
    """Run; gives the tensors before and after."""
    rounds = federation.scenario.run.rounds
    with federation.serving.serving():
        state = start_state(federation, None)
        if federation.strategy.opening is not None:
            raise Incompatible(
                f"adapter.init = {federation.scenario.adapter.init!r}: what clients send before "
                "round 1 is not audited; allowed: random"
            )
        before = dict(state.arrays)
        for server_round in range(1, rounds + 1):
            one_round(federation, state, server_round)
            step(what, server_round, rounds)
    return before, dict(state.arrays)
