"""What a client lets a server ask for, and what of a server's scenario it follows."""

from __future__ import annotations

from typing import Any

from fedtune.deploy.data import NEEDED
from fedtune.deploy.digest import base_digest
from fedtune.deploy.settings import ClientSettings
from fedtune.errors import ClientFailure
from fedtune.participation import Participation
from fedtune.runs.settling import settle_paths
from fedtune.runs.strategies import adapter_kind
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.trouble import AttackSection, FaultsSection
from fedtune.tasks.bases import base_folder

MOST_CLIENTS = 1_000_000
COLUMNS = ("image", "text", "text_pair", "label", "instruction", "response")


class Refused(ClientFailure):
    """A client that does not do what a server asks; nothing is trained."""

    def __init__(self, client: int, reason: str) -> None:
        super().__init__(client, "consent", reason)


def check_consent(scenario: Scenario, settings: ClientSettings) -> None:
    """Refuse what goes beyond a client's settings.

    Raises:
        Refused: with the key, what was asked and what is allowed.
    """
    for check in (_adapter, _base, _size, _task, _privacy, _private_task):
        if (reason := check(scenario, settings)) is not None:
            raise Refused(settings.client, reason)


def check_steps(batches: int, settings: ClientSettings) -> None:
    """Refuse more batches in a round than a client allows; how many follows from its data.

    Raises:
        Refused: saying how many are allowed.
    """
    if batches > settings.accepts.steps:
        raise Refused(
            settings.client,
            f"a round of more batches than accepts.steps = {settings.accepts.steps}",
        )


def _adapter(scenario: Scenario, settings: ClientSettings) -> str | None:
    kinds, section, kind = settings.accepts.adapters, scenario.adapter, adapter_kind(scenario)
    if kinds is not None and kind not in kinds:
        return f"adapter.kind = {kind!r}; accepts.adapters allows: {', '.join(kinds)}"
    rank = max([section.rank, *(section.rank_pattern or {}).values()])
    if rank > settings.accepts.rank:
        return f"adapter.rank = {rank}; accepts.rank allows {settings.accepts.rank}"
    return None


def _base(scenario: Scenario, settings: ClientSettings) -> str | None:
    named = scenario.task.base
    if (
        settings.data.file is not None
        and settings.base is None
        and not named.startswith("builtin:")
    ):
        return f"task.base = {named!r}; this client's settings name no base of its own"
    accepted = settings.accepts.base
    if accepted is not None and base_digest(settings.base or named) != accepted:
        return f"task.base = {named!r} has another digest than accepts.base"
    return None


def _size(scenario: Scenario, settings: ClientSettings) -> str | None:
    local, count = scenario.local, scenario.clients.count
    if count > MOST_CLIENTS or settings.client >= count:
        return (
            f"clients.count = {count}; this is client {settings.client} of at most {MOST_CLIENTS}"
        )
    if (local.steps or 1) * local.accumulation > settings.accepts.steps:
        return (
            f"local.steps = {local.steps}, accumulation = {local.accumulation}; accepts.steps "
            f"allows {settings.accepts.steps}"
        )
    return None


def _task(scenario: Scenario, settings: ClientSettings) -> str | None:
    labels = settings.data.labels
    if labels is not None and scenario.task.labels != labels:
        return "task.labels are not those of this client's settings"
    if settings.data.file is not None and scenario.task.pattern is not None:
        return "task.pattern: this client's file has columns"
    return None


def _privacy(scenario: Scenario, settings: ClientSettings) -> str | None:
    own, asked = settings.privacy, scenario.privacy
    if own.mechanism == "none":
        return None
    assert own.epsilon is not None
    if asked.mechanism != own.mechanism:
        return f"privacy.mechanism = {asked.mechanism!r}; this client allows: {own.mechanism!r}"
    if asked.deterministic_randomness:
        return "privacy.deterministic_randomness = true protects nobody"
    if asked.public_counts and not own.public_counts:
        return "privacy.public_counts = true; this client does not tell how many examples it has"
    if asked.epsilon is not None and asked.epsilon > own.epsilon:
        return f"privacy.epsilon = {asked.epsilon:g}; this client allows {own.epsilon:g}"
    if asked.delta > own.delta:
        return f"privacy.delta = {asked.delta:g}; this client allows {own.delta:g}"
    return None


def _private_task(scenario: Scenario, settings: ClientSettings) -> str | None:
    """What would let a server choose what an example is, or ask about single columns."""
    if settings.privacy.mechanism == "none" or settings.data.file is None:
        return None
    task = scenario.task
    if task.kind == "causal-lm" and task.response is None:
        return "a long text of causal-lm is several examples, each hidden by itself only"
    needed = NEEDED[task.kind] if task.kind != "causal-lm" else ("instruction", "response")
    used = [key for key in needed if getattr(task, key) is not None]
    if unnamed := [key for key in used if getattr(settings.data, key) is None]:
        return f"a private client's own settings must name data.{unnamed[0]}"
    if task.kind != "causal-lm" and settings.data.labels is None:
        return "a private client's own settings must name data.labels"
    if task.template is not None:
        return "task.template; a private client's prompts are one column"
    return None


def own_scenario(scenario: Scenario, settings: ClientSettings) -> Scenario:
    """What a client makes of a server's scenario: its own data, base, device and ledger.

    No path of the scenario's is read or written here but those of `data.dealt`, for trials.
    """
    changes: dict[str, Any] = {
        "engine.kind": "cohort",
        "engine.workers": None,
        "engine.device": settings.device,
        "engine.threads": settings.threads,
        "engine.cohort_size": 1,
        "run.trackers": [],
    }
    if settings.base is not None:
        changes["task.base"] = str(base_folder(settings.base))
    if scenario.privacy.mechanism != "none":
        changes["privacy.ledger"] = settings.ledger or f"{settings.store}/ledger.jsonl"
    if settings.data.file is not None:
        changes |= _own_data(scenario, settings)
    plain = scenario.model_copy(
        update={"faults": FaultsSection(), "attack": AttackSection(), "compare": None}
    )
    return settle_paths(load_scenario(plain, changes))


def _own_data(scenario: Scenario, settings: ClientSettings) -> dict[str, Any]:
    data = settings.data
    changes: dict[str, Any] = {"task.data": data.file, "task.test": data.file, "task.subset": None}
    changes |= {"task.train_split": "train", "task.test_split": "test"}
    changes |= dict.fromkeys(("task.train_examples", "task.columns", "task.extract"))
    named = {name: getattr(data, name) for name in COLUMNS}
    changes |= {f"task.{name}": column for name, column in named.items() if column is not None}
    chance = _chance(scenario)
    return changes | {
        "task.server_examples": 0,
        "clients.partition": {"kind": "iid"},
        "clients.participation": {"kind": "bernoulli", "value": chance},
    }


def _chance(scenario: Scenario) -> float:
    """How likely a client takes part in a round, as far as the scenario says; else 1."""
    section = scenario.clients.participation
    if section.kind not in ("fraction", "bernoulli") or isinstance(section.value, list):
        return 1.0
    if section.kind == "bernoulli":
        return section.value
    everyone = range(scenario.clients.count)
    return min(1.0, Participation("fraction", section.value, 0).expected(everyone) / len(everyone))
