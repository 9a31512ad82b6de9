"""How commands print what they found."""

from __future__ import annotations

import json
from typing import Any

import typer

from fedtune.files import plain


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN and infinity as null."""
    typer.echo(json.dumps(plain(value), indent=2, allow_nan=False))
