"""Privacy of a run: what is refused before anything is trained, and the clients' budgets."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

from fedtune.adapters.kinds import find_kind
from fedtune.adversaries.attacks import ATTACKS
from fedtune.apps.budget import Budget
from fedtune.apps.user_budget import UserBudget
from fedtune.errors import Incompatible, ScenarioError
from fedtune.participation import Participation
from fedtune.privacy.accounting import Sampling, Spent, noise_multiplier
from fedtune.privacy.ledger import Ledger
from fedtune.privacy.streams import Streams
from fedtune.privacy.user import UserMechanism
from fedtune.runs.participations import most_participations, planned_rounds
from fedtune.scenario import Scenario
from fedtune.server.base import AdapterStrategy
from fedtune.server.hooks import Hooks
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
    if scenario.adapter.init == "pooled":
        raise Incompatible(
            f"adapter.init = 'pooled': pools the clients' data, which {why} does not cover; "
            "allowed: auto, random, public, client-sketch, client-dense (the last two with noise)"
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


def check_user_level(cls: type[AdapterStrategy], scenario: Scenario, rule: str) -> None:
    """Refuse what gives one client more influence than user-level noise is made for.

    Args:
        rule: its name, `auto` resolved.

    Raises:
        Incompatible: with the reason, and what is allowed.
    """
    if scenario.privacy.mechanism != "user":
        return
    name, taking_part = scenario.strategy.name, scenario.clients.participation
    why = "privacy.mechanism = 'user'"
    if rule != "mean" or scenario.strategy.pre:
        key, value = ("rule", repr(rule)) if rule != "mean" else ("pre", scenario.strategy.pre)
        raise Incompatible(
            f"strategy.{key} = {value}: how much one client can change its result is not known, "
            f"and {why} needs that; allowed: the mean alone"
        )
    if not sums_updates_alone(cls):
        raise Incompatible(
            f"strategy.name = {name!r}: uses clients' replies besides the sum of this round's, "
            f"to which {why} adds noise"
        )
    if taking_part.kind not in ("fraction", "bernoulli") or isinstance(taking_part.value, list):
        raise Incompatible(
            f"clients.participation: {why} needs all clients drawn at one known rate; allowed: "
            "kind 'bernoulli' with one value (Poisson sampling), or 'fraction'"
        )
    if scenario.clients.weights in ("reported", "capped"):
        raise Incompatible(
            f"clients.weights = {scenario.clients.weights!r}: under {why} all clients count "
            "alike; allowed: auto, uniform"
        )
    if scenario.adapter.init in ("client-dense", "client-sketch", "pooled"):
        raise Incompatible(
            f"adapter.init = {scenario.adapter.init!r}: what clients send before round 1 would "
            f"get no noise under {why}; allowed: auto, random, public"
        )
    if scenario.task.head == "local":
        raise Incompatible(f"task.head = 'local': its evaluation is not noised under {why}")
    if scenario.local.client_momentum:
        raise Incompatible(
            f"local.client_momentum = {scenario.local.client_momentum}: clients keep it by name, "
            f"which tells who took part; leave it out under {why}"
        )
    crafted = scenario.attack.kind in ATTACKS and scenario.attack.fraction > 0
    if crafted and scenario.attack.knowledge == "all":
        raise Incompatible(
            f"attack.kind = {scenario.attack.kind!r}: malicious updates that follow from honest "
            f"ones carry each client further than {why} counts; allowed: attack.knowledge = 'own'"
        )


def check_any_level(scenario: Scenario) -> None:
    """Refuse what would enter the model without noise under either mechanism.

    Raises:
        Incompatible: with the reason, and what is allowed.
    """
    if scenario.privacy.mechanism == "none":
        return
    if scenario.task.validation is not None and scenario.run.early_stopping is not None:
        raise Incompatible(
            "run.early_stopping: would choose the model by examples of clients, which are looked "
            "at without noise; leave it or task.validation out"
        )
    adapter, framed = scenario.adapter, scenario.adapter.init not in ("auto", "random")
    if framed and adapter.init_step == "auto" and scenario.local.steps is None:
        raise Incompatible(
            "adapter.init_step = 'auto': follows from how many examples clients hold; give a "
            "number, or local.steps"
        )


def sums_updates_alone(cls: type[AdapterStrategy]) -> bool:
    """Whether all that a strategy takes from replies is the sum of their updates."""
    own = cls.combine is not Hooks.combine or cls.collect is not Hooks.collect
    return not (own or cls.reads_replies or cls.sends_iterates or cls.weighs_by_probability)


def make_user_privacy(
    scenario: Scenario, strategy: AdapterStrategy, clients: ClientRows, folder: Path | None
) -> UserBudget | None:
    """Give a strategy its mechanism and secret sampling; what it costs, or None.

    Raises:
        ScenarioError: for a δ or noise that cannot be.
    """
    section = scenario.privacy
    if section.mechanism != "user":
        return None
    assert scenario.task.data is not None
    eligible = list(clients.eligible)
    count, drawn = len(eligible), strategy.participation.expected(eligible)
    if section.delta >= 1.0 / count:
        raise Incompatible(
            f"privacy.delta = {section.delta:g}: there are {count} clients; allowed: less than "
            f"{1.0 / count:.3g}"
        )
    rate = drawn / count
    poisson = strategy.participation.kind == "bernoulli" or rate == 1.0
    sampling: Sampling = "poisson" if poisson else "fixed"
    z = section.noise_multiplier
    if z is None:
        assert section.epsilon is not None
        rounds = planned_rounds(scenario)
        z = noise_multiplier(
            section.epsilon, section.delta, rate, rounds, section.accountant, sampling
        )
    seed = scenario.run.seed if section.deterministic_randomness else None
    try:
        strategy.mechanism = UserMechanism(section.clip, z, drawn, Streams(seed), section.adaptive)
    except ValueError as error:
        raise Incompatible(f"privacy.adaptive.count_noise: {error}") from None
    if seed is None:  # who takes part is as secret as the noise, or there is no amplification
        strategy.participation = replace(strategy.participation, seed=secrets.randbits(62))
    return UserBudget(section, scenario.task.data, ledger_of(scenario, folder),
                      Spent(z, rate, 1, sampling))  # fmt: skip


def ledger_of(scenario: Scenario, folder: Path | None) -> Ledger:
    """The ledger of a run: the file that it names, or one in its directory, or none on disk."""
    named = scenario.privacy.ledger
    return Ledger(Path(named) if named else folder / LEDGER if folder else None)


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
    seed = scenario.run.seed if section.deterministic_randomness else None
    most = most_participations(scenario, clients, taking_part)
    ledger = ledger_of(scenario, folder)
    asked = scenario.adapter.kind == "lora-sb" and scenario.adapter.init.startswith("client")
    opening = scenario.adapter.init_examples if asked else None
    return Budget(section, scenario.local, scenario.task.data, ledger, most, seed, opening)


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
