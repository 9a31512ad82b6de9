"""What a client keeps between messages: its own head, its method's state, tensors it was sent."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from safetensors.torch import load, save
from torch import Tensor

from fedtune.files import write_atomically

KEPT, SENT = "kept", "sent"
GROUP_NAME, DIGEST = re.compile(r"[A-Z]"), re.compile(r"[0-9a-f]{16}")
Kept = dict[str, Tensor]


class ClientStore(Protocol):
    """State of clients, keyed by logical id; in a simulation part of the run's checkpoints."""

    def get(self, client: int) -> Kept | None:
        """What a client kept, or None before its first round."""
        ...

    def put(self, client: int, kept: Kept) -> None:
        """Replace what a client keeps."""
        ...

    def recall(self, group: str, digest: str) -> Kept | None:
        """Tensors of a group as the server sent them, or None if not in that version."""
        ...

    def remember(self, group: str, digest: str, tensors: Kept) -> None:
        """Keep tensors of a group that the server sent."""
        ...


class MemoryStore:
    """All clients' state in this process; what the server sent to many is held once."""

    def __init__(self) -> None:
        self.kept: dict[int, Kept] = {}
        self.sent: dict[str, tuple[str, Kept]] = {}

    def get(self, client: int) -> Kept | None:
        """What a client kept, or None before its first round."""
        return self.kept.get(client)

    def put(self, client: int, kept: Kept) -> None:
        """Replace what a client keeps."""
        self.kept[client] = kept

    def recall(self, group: str, digest: str) -> Kept | None:
        """Tensors of a group as the server sent them, or None if not in that version."""
        version, tensors = self.sent.get(group, ("", {}))
        return tensors if version == digest else None

    def remember(self, group: str, digest: str, tensors: Kept) -> None:
        """Keep tensors of a group that the server sent."""
        self.sent[group] = (digest, tensors)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as `client/name` and `sent/group/version/name` keys."""
        own = {f"{c}/{n}": t for c, kept in self.kept.items() for n, t in kept.items()}
        for group, (digest, tensors) in self.sent.items():
            own.update({f"{SENT}/{group}/{digest}/{n}": t for n, t in tensors.items()})
        return own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self.kept, self.sent = {}, {}
        for key, tensor in state.items():
            owner, name = key.split("/", 1)
            if owner == SENT:
                group, digest, name = name.split("/", 2)
                self.sent.setdefault(group, (digest, {}))[1][name] = tensor
            else:
                self.kept.setdefault(int(owner), {})[name] = tensor


class FileStore:
    """Clients' state as a file for each round they trained in, the last few kept.

    A run that is taken up again at an earlier round finds what held then.

    Args:
        folder: of the run.
        before: states of this round and later ones are not looked at.
        rounds: how far back a run may be taken up.
    """

    def __init__(self, folder: Path, before: int, rounds: int = 1) -> None:
        self.folder, self.before, self.rounds = folder, before, rounds

    def get(self, client: int) -> Kept | None:
        """What a client kept last, or None before its first round; before round 1 also of that."""
        files = self._files(client)
        rounds = [r for r in files if r < max(self.before, 1)]
        return load(files[max(rounds)].read_bytes()) if rounds else None

    def put(self, client: int, kept: Kept) -> None:
        """Keep what a client has after round `before`."""
        data = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
        path = self.folder / str(client) / f"{self.before}.safetensors"
        write_atomically(path, save(data))
        spent = [r for r in sorted(self._files(client)) if r < self.before - 2 * self.rounds][:-1]
        for old in spent:
            (self.folder / str(client) / f"{old}.safetensors").unlink(missing_ok=True)

    def recall(self, group: str, digest: str) -> Kept | None:
        """Tensors of a group as the server sent them, or None if not in that version."""
        file = self._sent(group, digest)
        return load(file.read_bytes()) if file.exists() else None

    def remember(self, group: str, digest: str, tensors: Kept) -> None:
        """Keep tensors of a group that the server sent, and those of rounds to be redone."""
        file = self._sent(group, digest)
        if file.exists():
            return
        data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomically(file, save(data))
        with suppress(FileNotFoundError):  # another process may tidy up too
            files = file.parent.glob(f"{group}-*.safetensors")
            for old in sorted(files, key=lambda file: file.stat().st_mtime)[
                : -2 * (self.rounds + 1)
            ]:
                old.unlink(missing_ok=True)

    def latest(self) -> dict[int, Kept]:
        """What all clients kept."""
        clients = sorted(int(folder.name) for folder in self.folder.glob("[0-9]*"))
        found = {client: self.get(client) for client in clients}
        return {client: kept for client, kept in found.items() if kept is not None}

    def _sent(self, group: str, digest: str) -> Path:
        """The file of a group; both names come with a message and must not lead elsewhere."""
        if not (GROUP_NAME.fullmatch(group) and DIGEST.fullmatch(digest)):
            raise KeyError(f"no group {group!r} of version {digest!r}")
        return self.folder / SENT / f"{group}-{digest}.safetensors"

    def _files(self, client: int) -> dict[int, Path]:
        found = (self.folder / str(client)).glob("[0-9]*.safetensors")
        return {int(file.stem): file for file in found}
