"""The ledger of one owner's data, which has other client ids in other federations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedtune.privacy.ledger import Entry, Ledger

OWNER = 0


class OwnLedger(Ledger):
    """All that was spent on the owner's data counts, under whatever id a server knows it."""

    def entries(self, client: int, data: str) -> list[Entry]:
        """All that was ever released of a data set."""
        return super().entries(OWNER, data)

    def charge(self, entries: Sequence[Entry]) -> None:
        """Add entries; they are on disk when this returns."""
        super().charge([replace(entry, client=OWNER) for entry in entries])
