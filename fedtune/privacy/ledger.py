"""What clients have spent: a file that only grows, written before anything leaves a client."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fedtune.errors import RunError
from fedtune.privacy.accounting import Sampling, Spent


@dataclass(frozen=True)
class Entry:
    """One release of a client.

    Attributes:
        client: logical id, or -1 for a server that releases for all.
        data: name of the data set; never of a run: another run on it goes on spending.
        run: which run it was for, and
        round: of it, 0 for what comes before the first.
        noise_multiplier, sample_rate, steps, sampling: as in `Spent`.
    """

    client: int
    data: str
    run: str
    round: int
    noise_multiplier: float
    sample_rate: float
    steps: int
    sampling: Sampling = "poisson"

    @property
    def spent(self) -> Spent:
        """What it costs."""
        return Spent(self.noise_multiplier, self.sample_rate, self.steps, self.sampling)


class Ledger:
    """Entries of all clients that use one file; several processes may.

    Args:
        path: a file of JSON lines; None keeps entries in this process only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._entries: dict[tuple[int, str], list[Entry]] = {}
        self._read = 0

    def entries(self, client: int, data: str) -> list[Entry]:
        """All that a client ever released of a data set."""
        self._catch_up()
        return list(self._entries.get((client, data), []))

    def clients(self, data: str) -> list[int]:
        """Clients that released something of a data set, sorted."""
        self._catch_up()
        return sorted(client for client, name in self._entries if name == data)

    def charge(self, entries: Sequence[Entry]) -> None:
        """Add entries; they are on disk when this returns."""
        if not entries:
            return
        if self.path is None:
            self._take(entries)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries)
        with self.path.open("ab") as file:
            file.truncate(self._end())
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within it, no other process looks at what is left and spends it too."""
        if self.path is None:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _end(self) -> int:
        """Where the last whole line ends: a kill may have cut one off, whose reply never left."""
        assert self.path is not None
        return self.path.read_bytes().rfind(b"\n") + 1

    def _catch_up(self) -> None:
        """Read what was added since, by whatever process; a line that was cut off is left out."""
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        self._take([_entry(line, self.path) for line in whole.splitlines()])

    def _take(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._entries.setdefault((entry.client, entry.data), []).append(entry)


def _entry(line: bytes, path: Path) -> Entry:
    try:
        return Entry(**json.loads(line))
    except (ValueError, TypeError):
        raise RunError(
            f"{path}: a line of the ledger cannot be read, so that what was spent is not known: "
            f"{line[:80]!r}"
        ) from None
