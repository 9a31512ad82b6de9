"""What tests of workers share."""

from __future__ import annotations

from tests.cohort.kit import distance

FLOAT64 = 1e-8


def far(found, alone) -> float:
    """The largest distance between clients' changes."""
    assert sorted(found) == sorted(alone)
    return max(
        distance(found[c].tensors[name], alone[c].tensors[name])
        for c in alone
        for name in alone[c].tensors
    )
