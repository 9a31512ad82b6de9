"""One look for everything that is drawn: a colour for each strategy, safe for the colour-blind.

Colours are those of Okabe and Ito (2008) that stand out on white; further strategies repeat them
with other dashes and markers, so no two look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[str, ...] = ("solid", "dashed", "dotted", "dashdot")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WRAPS = 3
STRATEGIES = (
    "fedavg", "ffa-lora", "fed-sb", "fedsvd", "fedex-lora", "rolora", "frl", "fedstale", "fedvarp",
    "fedavg-unbiased", "flag", "fedprox", "scaffold", "rerce", "admm",
)  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a line is drawn."""

    colour: str
    dash: str
    marker: str


def styles(names: Sequence[str | None]) -> list[Style]:
    """A style for each family, no two alike.

    Args:
        names: of its strategy; None where families differ in something else. Families of one
            strategy share its colour and differ in dash and marker.
    """
    order = list(STRATEGIES)
    seen: dict[str, int] = {}
    found = []
    for position, name in enumerate(names):
        if name is None:
            found.append(_style(position % len(COLOURS), position // len(COLOURS)))
            continue
        if name not in order:
            order.append(name)
        wrap, colour = divmod(order.index(name), len(COLOURS))
        again = seen.get(name, 0)
        seen[name] = again + 1
        found.append(_style(colour, wrap + WRAPS * again))
    return found


def _style(colour: int, variant: int) -> Style:
    """Numbers of dashes and markers have no common factor, so 28 variants differ."""
    return Style(COLOURS[colour], DASHES[variant % len(DASHES)], MARKERS[variant % len(MARKERS)])
