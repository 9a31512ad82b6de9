"""Errors that end a command with one clear line instead of a traceback."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, MAX_LISTED = 80, 20


class FedtuneError(Exception):
    """A failure that the user is told in one line."""


class ScenarioError(FedtuneError):
    """A scenario, argument or run directory that cannot be used (exit code 2).

    Raised before anything is trained; the message names the key, what was given and what is
    allowed.
    """


class Incompatible(ScenarioError):
    """Parts that are right by themselves but cannot go together; a comparison skips them."""


class RunError(FedtuneError):
    """A run that failed while it ran (exit code 1); its directory stays readable and resumable."""


class ClientFailure(RunError):
    """A client that raised, with its id and the stage (`data`, `train` or `evaluate`)."""

    def __init__(self, client: int, stage: str, cause: BaseException | str) -> None:
        self.client = client
        self.stage = stage
        self.reason = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"
        self.__cause__ = cause if isinstance(cause, BaseException) else None
        super().__init__(f"client {client} failed in {stage}: {self.reason}")

    def __reduce__(self) -> tuple[type, tuple[int, str, str]]:
        """For a worker's process to tell it; the cause stays there."""
        return ClientFailure, (self.client, self.stage, self.reason)


class Declined(ClientFailure):
    """A client that takes no part because its privacy budget is spent; the run goes on."""

    def __init__(self, client: int, reason: str) -> None:
        super().__init__(client, "privacy", reason)


def first_line(error: BaseException) -> str:
    """What an exception says, cut to its first line."""
    return str(error).strip().split("\n", 1)[0]


def quoted(value: object) -> str:
    """A value of a user's data for a message."""
    return cut(repr(value[: LONGEST + 1] if isinstance(value, str | bytes) else value))


def cut(text: str) -> str:
    """A text of a user's data for a message, of at most `LONGEST` characters."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def listed(names: Sequence[str]) -> str:
    """Names of a user's data for a message: the first of them, each as `quoted`."""
    more = ", ..." if len(names) > MAX_LISTED else ""
    return ", ".join(map(quoted, names[:MAX_LISTED])) + more
