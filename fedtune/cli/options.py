"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from fedtune.console import show_bars


def _silent(as_json: bool) -> bool:
    show_bars(not as_json)
    return as_json


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", callback=_silent)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. run.rounds=5."),
]


class Interrupted(Exception):
    """Ctrl-C while something long was going on; says how to go on."""
