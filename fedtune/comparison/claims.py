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
LOST = "lost_under_attack"
Record = dict[str, Any]
Values = dict[int, float | None]


def check_claim(claim: ClaimSection, overs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a part whose sides no family of a comparison is on, or whose measure there is not.

    Args:
        overs: of the families that can be trained.

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
        part["detectable"] = _detectable(part, tests)
        part["verdict"] = part["verdict"] or _verdict(part)
    return {**claim.model_dump(), "parts": parts, "verdict": _whole(parts)}


def side_of(record: Mapping[str, Any], part: ClaimPart, pick: Pick) -> Values:
    """A side's value under each seed; None where a run diverged, absent where one is missing."""
    families = [family for family in record["families"] if _fits(family["over"], pick)]
    found = [_values(family, part.measure) for family in families]
    seeds = set.intersection(*(set(values) for values in found)) if found else set()
    chosen = _chosen(found, seeds, part.across, _low(record, part))
    return {seed: _across([values[seed] for values in chosen], part.across) for seed in seeds}


def _values(family: Mapping[str, Any], measure: str) -> Values:
    """A family's measure under each finished seed; of what is reported, the mean over rounds."""
    done = [cell for cell in family["cells"] if cell["status"] == "done"]
    if not measure.startswith(REPORTED):
        return {cell["seed"]: cell["measures"][measure] for cell in done}
    name = measure.removeprefix(REPORTED)
    reports = {cell["seed"]: [v for _, v in cell["reported"].get(name, [])] for cell in done}
    return {s: float(np.mean(v)) if v and None not in v else None for s, v in reports.items()}


def _chosen(found: list[Values], seeds: set[int], how: str, low: bool) -> list[Values]:
    """The families that count; for `best` and `worst` one, by its mean over seeds.

    For `drop` the best comes first. A family that diverged is the worst of all.
    """
    if how == "mean" or not seeds:
        return found

    def goodness(values: Values) -> float:
        numbers = [values[seed] for seed in seeds]
        if None in numbers:
            return -np.inf
        mean = float(np.mean(np.asarray(numbers, dtype=np.float64)))
        return -mean if low else mean

    ranked = sorted(found, key=goodness, reverse=True)
    return {"best": ranked[:1], "worst": ranked[-1:], "drop": ranked}[how]


def _across(values: Sequence[float | None], how: str) -> float | None:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return None
    mean = float(np.mean(numbers))
    return abs(numbers[0] - mean) if how == "drop" else mean


def _part(part: ClaimPart, record: Mapping[str, Any]) -> Record:
    left, right = side_of(record, part, part.left), side_of(record, part, part.right)
    both = sorted(left.keys() & right.keys())
    pairs = [(left[s], right[s]) for s in both if None not in (left[s], right[s])]
    mine, theirs = np.asarray(pairs, dtype=np.float64).reshape(-1, 2).T
    complete, sound = len(both) >= record["seeds"], len(pairs) == len(both)
    found = {
        **part.model_dump(),
        "values": {"left": mine.tolist(), "right": theirs.tolist()},
        "difference": asdict(spread((mine - theirs).tolist() or [0.0])),
        "ratio": None,
        "p": None,
        "sign": -1.0 if part.across == "drop" or _low(record, part) else 1.0,
        "verdict": UNFINISHED if not complete else None if sound else UNTESTED,
    }
    if found["verdict"] is None and part.between is not None:
        found["verdict"], found["ratio"] = _ratio(part.between, mine, theirs)
    elif found["verdict"] is None:
        found["p"] = _p(part, mine, theirs, found["sign"])
        found["verdict"] = UNTESTED if found["p"] is None else None
    return found


def _ratio(bounds: Sequence[float], mine: Any, theirs: Any) -> tuple[str, Record | None]:
    if not theirs.all():
        return UNTESTED, None
    ratios = mine / theirs
    within = bool(((bounds[0] <= ratios) & (ratios <= bounds[1])).all())
    return SHOWN if within else NOT_SHOWN, asdict(spread(ratios.tolist()))


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


def _detectable(part: Record, tests: int) -> float | None:
    """The smallest difference that would be found; for no-worse, the margin if both are equal.

    With a chance of 80 %. A one-sided test at a level is a two-sided one at twice that.
    """
    sd, n = part["difference"]["sd"], part["difference"]["n"]
    if part["p"] is None or not sd:
        return None
    return detectable(sd, n, tests, one_sided=part["test"] == "no-worse")


def _verdict(part: Record) -> str:
    if part["p_holm"] >= LEVEL:
        return NOT_SHOWN
    if part["test"] == "no-worse" or part["sign"] * part["difference"]["mean"] > 0:
        return SHOWN
    return OPPOSITE


def _whole(parts: Sequence[Record]) -> str:
    """Of all parts; ratios, which hold by arithmetic, show nothing beside tests."""
    verdicts = [part["verdict"] for part in parts]
    if UNFINISHED in verdicts:
        return UNFINISHED
    if set(verdicts) == {SHOWN}:
        return SHOWN
    tested = [part["verdict"] for part in parts if part["test"] != "ratio"] or verdicts
    if SHOWN in tested:
        return MIXED
    return tested[0] if len(set(tested)) == 1 else NOT_SHOWN


def _low(record: Mapping[str, Any], part: ClaimPart) -> bool:
    """Whether less of a part's measure is better: of all but a metric, a rank and a report."""
    if part.less_is_better is not None:
        return part.less_is_better
    if part.measure.startswith(REPORTED):
        return False
    if part.measure == LOST or unit_of(part.measure) != "metric":
        return True
    return bool(record["lower_is_better"])


def _fits(over: Mapping[str, Any], pick: Mapping[str, Any]) -> bool:
    """Whether a combination has the values; a list stands for any of its members, too."""
    return all(
        over.get(key) == value or (isinstance(value, list) and over.get(key) in value)
        for key, value in pick.items()
    )
