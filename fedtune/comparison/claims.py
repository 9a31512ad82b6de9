"""Whether the parts of a claim are shown by a comparison's runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy import stats

from fedtune.comparison.statistics import LEVEL, detectable, holm, paired_difference, spread
from fedtune.errors import ScenarioError
from fedtune.reporting.claim import REPORTED, UNITS, unit_of
from fedtune.scenario.claim import ClaimPart, ClaimSection, Pick

SHOWN, NOT_SHOWN, OPPOSITE = "shown", "not shown", "the opposite is shown"
UNTESTED, UNFINISHED, MIXED = "cannot be tested", "not finished", "mixed"
CHEAPER = frozenset({"bytes", "seconds"})
Record = dict[str, Any]


def check_claim(claim: ClaimSection, overs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a part whose sides no family of a comparison is on, or whose measure there is not.

    Raises:
        ScenarioError: naming the part.
    """
    for index, part in enumerate(claim.parts):
        if part.measure not in UNITS and not part.measure.startswith(REPORTED):
            allowed = f"{', '.join(UNITS)}, {REPORTED}NAME"
            raise ScenarioError(
                f"compare.claim.parts.{index}.measure = {part.measure!r}: allowed: {allowed}"
            )
        for side, pick in (("left", part.left), ("right", part.right)):
            if not any(_fits(over, pick) for over in overs):
                raise ScenarioError(
                    f"compare.claim.parts.{index}.{side} = {pick}: no combination is so"
                )


def claim_record(claim: ClaimSection, record: Mapping[str, Any]) -> Record:
    """The verdict on a claim, and on each of its parts; p values are Holm-corrected over these.

    Args:
        record: of the comparison, with its families.
    """
    parts = [_part(part, record) for part in claim.parts]
    corrected = holm([part["p"] for part in parts])
    tests = sum(part["p"] is not None for part in parts)
    for part, p in zip(parts, corrected, strict=True):
        part["p_holm"] = p
        sd, n = part["difference"]["sd"], part["difference"]["n"]
        part["detectable"] = detectable(sd, n, tests) if part["p"] is not None and sd else None
        part["verdict"] = part["verdict"] or _verdict(part)
    return {**claim.model_dump(), "parts": parts, "verdict": _whole([p["verdict"] for p in parts])}


def side(record: Mapping[str, Any], part: ClaimPart, pick: Pick) -> dict[int, float | None]:
    """A side's value under each seed; None where a run diverged, absent where one is missing."""
    cells: dict[int, list[Any]] = {}
    families = [family for family in record["families"] if _fits(family["over"], pick)]
    for family in families:
        for cell in family["cells"]:
            if cell["status"] == "done":
                cells.setdefault(cell["seed"], []).append(_value(cell, part.measure))
    low = _low(record, part.measure)
    whole = {seed: found for seed, found in cells.items() if len(found) == len(families)}
    return {s: None if None in v else _across(v, part.across, low) for s, v in whole.items()}


def _value(cell: Mapping[str, Any], measure: str) -> float | None:
    """A measure of a cell; of what rule or strategy report, the mean over rounds."""
    if not measure.startswith(REPORTED):
        value: float | None = cell["measures"][measure]
        return value
    found = cell["reported"].get(measure.removeprefix(REPORTED), [])
    return float(np.mean([value for _, value in found])) if found else None


def _part(part: ClaimPart, record: Mapping[str, Any]) -> Record:
    left, right = side(record, part, part.left), side(record, part, part.right)
    lost = [s for s in left.keys() & right.keys() if None in (left[s], right[s])]
    pairs = [(left[s], right[s]) for s in sorted(left.keys() & right.keys()) if s not in lost]
    mine, theirs = np.asarray(pairs, dtype=np.float64).reshape(-1, 2).T
    wanted = record["seeds"]
    found = {
        **part.model_dump(),
        "values": {"left": mine.tolist(), "right": theirs.tolist()},
        "difference": asdict(spread((mine - theirs).tolist() or [0.0])),
        "ratio": None,
        "p": None,
        "signed": -1.0 if _less_is_better(record, part) else 1.0,
        "verdict": UNFINISHED if len(pairs) + len(lost) < wanted else UNTESTED if lost else None,
    }
    if found["verdict"] is None and part.between is not None:
        ratios = mine / theirs
        low, high = part.between
        found["ratio"] = asdict(spread(ratios.tolist()))
        found["verdict"] = SHOWN if bool(((low <= ratios) & (ratios <= high)).all()) else NOT_SHOWN
    elif found["verdict"] is None:
        found["p"] = _p(part, mine, theirs, found["signed"])
        found["verdict"] = UNTESTED if found["p"] is None else None
    return found


def _p(part: ClaimPart, mine: Any, theirs: Any, sign: float) -> float | None:
    """Two-sided of no difference, or one-sided of being behind by the margin."""
    if part.test == "better":
        return paired_difference(mine.tolist(), theirs.tolist()).p
    ahead = sign * (mine - theirs) + part.margin
    if len(ahead) < 2:
        return None
    if ahead.std() <= 1e-12 * part.margin:
        return 0.0 if ahead.mean() > 0 else 1.0
    return float(stats.ttest_1samp(ahead, 0.0, alternative="greater").pvalue)


def _verdict(part: Record) -> str:
    if part["p_holm"] >= LEVEL:
        return NOT_SHOWN
    if part["test"] == "no-worse" or part["signed"] * part["difference"]["mean"] > 0:
        return SHOWN
    return OPPOSITE


def _whole(verdicts: Sequence[str]) -> str:
    if UNFINISHED in verdicts:
        return UNFINISHED
    shown = verdicts.count(SHOWN)
    return SHOWN if shown == len(verdicts) else MIXED if shown else NOT_SHOWN


def _across(values: Sequence[float], how: str, low: bool) -> float:
    best, worst = (min, max) if low else (max, min)
    mean = float(np.mean(values))
    return {
        "mean": mean,
        "best": float(best(values)),
        "worst": float(worst(values)),
        "drop": abs(float(best(values)) - mean),
    }[how]


def _less_is_better(record: Mapping[str, Any], part: ClaimPart) -> bool:
    if part.less_is_better is not None:
        return part.less_is_better
    return part.across == "drop" or _low(record, part.measure)


def _low(record: Mapping[str, Any], measure: str) -> bool:
    unit = unit_of(measure)
    return bool(record["lower_is_better"]) if unit == "metric" else unit in CHEAPER


def _fits(over: Mapping[str, Any], pick: Mapping[str, Any]) -> bool:
    return all(over.get(key) == value for key, value in pick.items())
