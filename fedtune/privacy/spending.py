"""What a ledger says of a data set, for summaries and reports."""

from __future__ import annotations

from typing import Any

from fedtune.privacy.accounting import epsilon
from fedtune.privacy.ledger import Ledger
from fedtune.scenario.privacy import PrivacySection

SERVER = -1


def spending(section: PrivacySection, data: str, ledger: Ledger) -> dict[str, Any] | None:
    """Who is protected how, and what each client (or the server, -1) spent; None without privacy.

    Noise and sampling rate are those of the last release.
    """
    if section.mechanism == "none":
        return None
    user = section.mechanism == "user"
    known = [client for client in ledger.clients(data) if (client == SERVER) == user]
    clients, sampling = {}, "poisson"
    for client in known:
        entries = ledger.entries(client, data)
        history = [entry.spent for entry in entries]
        sampling = entries[-1].sampling
        clients[str(client)] = {
            "epsilon": epsilon(history, section.delta, section.accountant),
            "noise_multiplier": entries[-1].noise_multiplier,
            "sample_rate": entries[-1].sample_rate,
            "steps": sum(entry.steps for entry in entries),
            "releases": len(entries),
        }
    return {
        "mechanism": section.mechanism,
        "sampling": sampling,
        "delta": section.delta,
        "accountant": section.accountant,
        "clip": section.clip,
        "secret": not section.deterministic_randomness,
        "clients": clients,
    }
