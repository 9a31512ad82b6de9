"""What a ledger says of a data set, for summaries and reports."""

from __future__ import annotations

from typing import Any

from fedtune.privacy.accounting import epsilon
from fedtune.privacy.ledger import Entry, Ledger
from fedtune.scenario.privacy import PrivacySection

SERVER = -1
SLACK = 1e-9


def exceeds(after: float, limit: float | None) -> bool:
    """Whether ε is over a limit, if there is one, by more than rounding."""
    return limit is not None and after > limit * (1.0 + SLACK)


def histories(section: PrivacySection, data: str, ledger: Ledger) -> dict[int, list[Entry]]:
    """Releases of a data set by whoever adds the noise: each client, or the server alone."""
    user = section.mechanism == "user"
    known = [client for client in ledger.clients(data) if (client == SERVER) == user]
    return {client: ledger.entries(client, data) for client in known}


def spent_epsilons(section: PrivacySection, data: str, ledger: Ledger) -> dict[int, float]:
    """ε of all that each client (or the server, -1) released."""
    return {
        client: epsilon([entry.spent for entry in entries], section.delta, section.accountant)
        for client, entries in histories(section, data, ledger).items()
    }


def spending(section: PrivacySection, data: str, ledger: Ledger) -> dict[str, Any] | None:
    """Who is protected how, and what each client (or the server, -1) spent; None without privacy.

    Noise and sampling rate are those of the last release.
    """
    if section.mechanism == "none":
        return None
    released, spent = histories(section, data, ledger), spent_epsilons(section, data, ledger)
    clients = {
        str(client): {
            "epsilon": spent[client],
            "noise_multiplier": entries[-1].noise_multiplier,
            "sample_rate": entries[-1].sample_rate,
            "steps": sum(entry.steps for entry in entries),
            "releases": len(entries),
        }
        for client, entries in released.items()
    }
    last = [entries[-1].sampling for entries in released.values()]
    return {
        "mechanism": section.mechanism,
        "sampling": last[-1] if last else "poisson",
        "delta": section.delta,
        "accountant": section.accountant,
        "clip": section.clip,
        "secret": not section.deterministic_randomness,
        "clients": clients,
    }
