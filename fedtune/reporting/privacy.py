"""Privacy in words and as a table: who is protected against whom, and what each client spent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedtune.reporting.tables import Entry, Table

Found = Mapping[str, Any]


def statement(found: Found) -> str:
    """Who is protected against whom.

    Args:
        found: `privacy` of a run's summary.
    """
    spent = f"(ε, δ) = ({_number(most(found))}, {found['delta']:g})"
    if not found["secret"]:
        return (
            "Nobody is protected: noise and sampling come from the run's seed "
            "(privacy.deterministic_randomness), so that whoever knows it can take the noise off. "
            f"With secret randomness it would be {spent}."
        )
    if found["mechanism"] == "user":
        return (
            "Each client, with all of its data, is hidden from everybody who sees the models of "
            f"all rounds: {spent}, {NEIGHBOURS[found['sampling']]}. The server is "
            "trusted: it sees every update, who sent it, and adds the noise."
        )
    return (
        "Each example of each client is hidden from everybody else who sees all that the client "
        f"ever sent, the server and the other clients included: {spent} at most, by the "
        "client's own ledger; neighbours differ in whether one example counts. How many examples "
        "a client holds is not hidden, nor that it takes part."
    )


NEIGHBOURS = {
    "poisson": "neighbours differ in whether one client counts",
    "fixed": "neighbours differ by one client, replaced by another",
}


def in_a_line(found: Found) -> str:
    """What was spent, for a terminal."""
    kind = {"example": "of an example of any client", "user": "of any client"}[found["mechanism"]]
    warning = "" if found["secret"] else "; NOT private: deterministic randomness"
    return f"privacy: ε {_number(most(found))} at δ {found['delta']:g}, {kind}{warning}"


def most(found: Found) -> float:
    """The largest ε that was spent; infinite without noise."""
    values = [one["epsilon"] for one in found["clients"].values()]
    return max((math.inf if value is None else value for value in values), default=0.0)


def ledger_table(found: Found) -> Table:
    """The ledger, a row a client: what it releases with, how much of it, and ε."""
    headings = ["client", "sampling rate", "noise multiplier", "steps", "releases", "δ", "ε"]
    rows = [
        [
            Entry("server" if int(client) < 0 else client),
            Entry(_number(one["sample_rate"]), f"privacy.clients.{client}.sample_rate"),
            Entry(_number(one["noise_multiplier"]), f"privacy.clients.{client}.noise_multiplier"),
            Entry(f"{one['steps']:,}", f"privacy.clients.{client}.steps"),
            Entry(str(one["releases"]), f"privacy.clients.{client}.releases"),
            Entry(f"{found['delta']:g}", "privacy.delta"),
            Entry(_number(one["epsilon"]), f"privacy.clients.{client}.epsilon"),
        ]
        for client, one in sorted(found["clients"].items(), key=lambda pair: int(pair[0]))
    ]
    return Table(headings, rows)


def _number(value: float | None) -> str:
    return "∞" if value is None or math.isinf(value) else f"{value:.3g}"
