"""What families of a comparison differ by: from the reference, and from themselves unattacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fedtune.comparison.claims import Record
from fedtune.comparison.measure import better_is_lower
from fedtune.comparison.statistics import LEVEL, detectable, holm, paired_difference

ATTACK = "attack.kind"


def differences(families: Sequence[Record], reference: str, metric: str) -> list[Record]:
    """Every family's final metric against the reference's, paired by seed, Holm-corrected.

    Seeds that diverged cannot be paired, and would flatter a family by their absence: where one
    of the two has any, nothing is tested.
    """
    base = next((family for family in families if family["label"] == reference), None)
    if base is None:
        return []
    others = [family for family in families if family is not base]
    pairs = [(other, *_paired(other, base)) for other in others]
    found = [(o, paired_difference(mine, theirs)) for o, mine, theirs in pairs if mine]
    lost = [bool(other["diverged"] or base["diverged"]) for other, _ in found]
    p_values = [None if gone else d.p for (_, d), gone in zip(found, lost, strict=True)]
    tests = sum(p is not None for p in p_values)
    rows = []
    for (other, difference), raw, p in zip(found, p_values, holm(p_values), strict=True):
        sd, n = difference.spread.sd, difference.spread.n
        row = {
            "label": other["label"],
            "reference": reference,
            "difference": asdict(difference.spread),
            "p": raw,
            "p_holm": p,
            "rank_p": difference.rank_p if raw is not None else None,
            "detectable": detectable(sd, n, tests) if raw is not None and sd else None,
            "verdict": _verdict(difference.spread.mean, p, metric),
        }
        rows.append(row)
    return rows


def _verdict(mean: float, p: float | None, metric: str) -> str:
    if p is None:
        return "cannot be tested"
    if p >= LEVEL:
        return "no difference shown"
    return "better" if (mean < 0) == better_is_lower(metric) else "worse"


def _paired(one: Record, other: Record) -> tuple[list[float], list[float]]:
    """Final metrics of the seeds that both families have."""
    mine, theirs = ({c["seed"]: _final(c) for c in family["cells"]} for family in (one, other))
    seeds = [s for s in mine if mine[s] is not None and theirs.get(s) is not None]
    return [mine[s] for s in seeds], [theirs[s] for s in seeds]


def _final(cell: Record) -> Any:
    return cell["measures"]["final"] if cell["status"] == "done" else None


def add_lost_under_attack(families: Sequence[Record], metric: str) -> None:
    """Where the attack is an axis: what each cell lost against its twin without one."""
    sign = -1.0 if better_is_lower(metric) else 1.0
    for family in families:
        calm = [f for f in families if _calm(f["over"], family["over"])]
        before = {c["seed"]: _final(c) for f in calm for c in f["cells"]}
        for cell in family["cells"]:
            first, last = before.get(cell["seed"]), _final(cell)
            lost = None if first is None or last is None else sign * (first - last)
            cell["measures"]["lost_under_attack"] = lost


def _calm(over: Mapping[str, Any], attacked: Mapping[str, Any]) -> bool:
    """Whether a combination is the other one without its attack."""
    if attacked.get(ATTACK, "none") == "none" or over.get(ATTACK) != "none":
        return False
    return all(over[key] == value for key, value in attacked.items() if key != ATTACK)
