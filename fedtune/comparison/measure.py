"""What a run reached and what it cost, read from its directory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedtune.runs.clientwise import LOWER_IS_BETTER
from fedtune.runs.directory import RunDirectory

PREFERRED = ("accuracy", "perplexity", "nmsd", "loss")
CUMULATIVE = ("bytes_up", "bytes_down", "client_steps", "seconds")
TOTALS = (*CUMULATIVE, "seconds_clients", "seconds_server", "failures", "rejected")
Looks = Sequence[Mapping[str, Any]]


def better_is_lower(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric in LOWER_IS_BETTER


def default_metric(found: Collection[str]) -> str:
    """What a task is judged by, of the metrics of an evaluation."""
    return next(name for name in PREFERRED if name in found)


def looks_of(directory: RunDirectory) -> list[dict[str, Any]]:
    """Every evaluation: `round`, metrics under `eval`, and what was spent until then.

    The one before round 1 comes first, once the run has ended.
    """
    spent = {**dict.fromkeys(CUMULATIVE, 0), **_opening(directory)}
    initial = directory.summary.get("initial")
    found = [{"round": 0, "eval": initial, **spent}] if initial else []
    for line in directory.metrics:
        spent = {key: spent[key] + line.get(key, 0) for key in CUMULATIVE}
        if line["eval"]:
            found.append({"round": line["round"], "eval": line["eval"], **spent})
    return found


def best_of(looks: Looks, metric: str) -> Mapping[str, Any] | None:
    """The evaluation with the best value of a metric after round 0."""
    known = [look for look in looks if look["round"] and look["eval"].get(metric) is not None]
    pick = min if better_is_lower(metric) else max
    return pick(known, key=lambda look: look["eval"][metric], default=None)


def reached(looks: Looks, metric: str, target: float) -> Mapping[str, Any] | None:
    """The first evaluation that is as good as the target."""
    sign = -1.0 if better_is_lower(metric) else 1.0
    for look in looks:
        value = look["eval"].get(metric)
        if look["round"] and value is not None and sign * value >= sign * target:
            return look
    return None


def measure(directory: RunDirectory, metric: str, target: float | None) -> dict[str, Any]:
    """The measures of a run, under the keys of `fedtune.reporting.measures`; None where unknown.

    Args:
        metric: what decides.
        target: value of it whose cost is counted.
    """
    looks, lines, summary = looks_of(directory), directory.metrics, directory.summary
    before = _opening(directory)
    best = best_of(looks, metric)
    hit = None if target is None else reached(looks, metric, target)
    worst = summary.get("clients") or {}
    return {
        "final": looks[-1]["eval"].get(metric) if looks else None,
        "final_loss": looks[-1]["eval"].get("loss") if looks else None,
        "best": best["eval"][metric] if best else None,
        "rounds_to_target": hit["round"] if hit else None,
        "bytes_up_to_target": hit["bytes_up"] if hit else None,
        "seconds_to_target": hit["seconds"] if hit else None,
        "rounds": len(lines),
        **{key: _total(lines, key) for key in TOTALS},
        **{key: _total([before, *lines], key) for key in before},
        "worst_client": worst.get("worst", {}).get(metric),
        "p10_client": worst.get("p10", {}).get(metric),
        "epsilon": _epsilon(lines),
        "peak_memory_bytes": summary.get("peak_memory_bytes"),
    }


def _opening(directory: RunDirectory) -> dict[str, int]:
    """Payload before round 1, for the frame of LoRA-SB."""
    found = directory.opening or {}
    return {key: found[key] for key in ("bytes_up", "bytes_down") if key in found}


def reported(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """What rule and strategy say of each round, and ε: (round, value) by name."""
    found: dict[str, list[list[float]]] = {}
    for line in lines:
        for name, value in line.get("rule", {}).items():
            found.setdefault(name, []).append([line["round"], value])
        if (spent := _epsilon([line])) is not None:
            found.setdefault("epsilon", []).append([line["round"], spent])
    return found


def _total(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """None where a run, made by an older version, does not say."""
    found = [line[key] for line in lines if key in line]
    return sum(found) if len(found) == len(lines) else None


def client_values(directory: RunDirectory, metric: str) -> list[float]:
    """The final model's metric of every client for which it is known."""
    clients = directory.clients.get("clients", {})
    values = [found.get(metric) for found in clients.values()]
    return [value for value in values if value is not None]


def _epsilon(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """The largest privacy loss of any client at the end."""
    found = lines[-1].get("epsilon") if lines else None
    if isinstance(found, Mapping):
        spent = [value for value in found.values() if value is not None]
        return max(spent) if len(spent) == len(found) > 0 else None
    return None if found is None else float(found)
