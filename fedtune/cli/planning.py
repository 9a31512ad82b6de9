"""A plan in words."""

from __future__ import annotations

from fedtune.runs.plan import LATER, Plan


def describe(found: Plan) -> list[tuple[str, str]]:
    """A plan in words: name and text of each line."""
    down, up = found.bytes_down + found.framing_down, found.bytes_up + found.framing_up
    about = "about " if LATER in found.notes else ""
    framing = found.framing_down + found.framing_up
    return [
        ("method", f"{found.strategy}, adapter {found.adapter}"),
        (
            "parameters",
            f"{found.parameters_trained:,} trained and {found.parameters_sent:,} sent by a client, "
            f"over {found.parameters_base:,} of the base",
        ),
        ("clients", f"{found.clients_per_round:g} of {found.clients} in a round"),
        (
            "a round",
            f"{_size(down)} down, {_size(up)} up, of which {_size(framing)} is Flower's framing",
        ),
        (
            "the run",
            f"{about}{_size(found.run_bytes_down)} down, {_size(found.run_bytes_up)} up, "
            "framing aside",
        ),
        *(
            [
                (
                    "before round 1",
                    f"{_size(found.opening_bytes_down)} down, {_size(found.opening_bytes_up)} up",
                )
            ]
            if found.opening_bytes_up
            else []
        ),
        (
            "memory",
            f"{_size(found.memory_base_bytes)} loaded, {_size(found.memory_peak_bytes)} at the "
            f"peak, {found.cohort_size} clients trained together on {found.device}",
        ),
        (
            "time",
            f"{_duration(found.seconds_train)} a round, {_duration(found.seconds_evaluate)} an "
            f"evaluation, {_duration(found.seconds_total)} in all after "
            f"{_duration(found.seconds_prepare)} of loading ({found.backend} engine)",
        ),
        *([("privacy", _privacy(found.privacy))] if found.privacy else []),
        *[("note", note) for note in found.notes],
    ]


def _privacy(found: dict[str, list[float]]) -> str:
    z, q, times, spent = (
        _range(found[key])
        for key in ("noise_multiplier", "sample_rate", "participations", "epsilon")
    )
    return (
        f"each client spends ε {spent} at δ {found['delta'][0]:g} by {times} participations, then "
        f"takes no part; noise multiplier {z}, sampling rate {q}"
    )


def _range(ends: list[float]) -> str:
    low, high = (f"{end:.3g}" for end in ends)
    return low if low == high else f"{low} to {high}"


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
