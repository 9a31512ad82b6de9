"""Traces: who did what in which round, from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fedtune.errors import ScenarioError, first_line


def read_trace(key: str, file: str | None, count: int) -> dict[int, list[int]] | None:
    """Client ids by round, of a csv with columns `round` and `client`; None without a file.

    Args:
        key: of the scenario, for messages.
        file: its path.
        count: of clients, whose ids are 0 to count - 1.

    Raises:
        ScenarioError: for a file that is no such csv, or names another client.
    """
    if file is None:
        return None
    path = Path(file).expanduser()
    try:
        rows = pd.read_csv(path, dtype=np.int64)
        found = rows.groupby("round")["client"].apply(list).to_dict()
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise ScenarioError(
            f"{key} = {str(path)!r}: must be a csv of whole numbers with columns round and client "
            f"({reason})"
        ) from None
    if not found or min(found) < 1:
        raise ScenarioError(f"{key} = {str(path)!r}: has no round from 1 on")
    if other := sorted(set(rows["client"]) - set(range(count))):
        raise ScenarioError(
            f"{key} = {str(path)!r}: names client {other[0]}; clients are 0 to {count - 1}"
        )
    return {int(number): clients for number, clients in found.items()}
