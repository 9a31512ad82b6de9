"""What a usable reply is; anything else is set aside, counted and named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from torch import Tensor

from fedtune.grids.directory import Directory
from fedtune.grids.form import ReplyForm

DECLINED = 1001  # code of a client that takes no part of its own will
BECAME = {"failures": "failed", "rejected": "set aside", "lost": "lost"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class RoundReport:
    """What happened to a round's replies.

    Attributes:
        sampled: client ids that were asked.
        used: client ids whose update entered the rule.
        failed: reason by client id, of clients that answered with an error.
        rejected: reason by client id, of malformed replies; they never reach the rule.
        lost: client ids of which nothing arrived.
        examples: that each used client reports to hold.
        steps: that those report to have done who did not do what was planned.
        coefficients: of the used clients' updates, where the rule is a linear combination.
        notes: what else the rule says.
    """

    sampled: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    rejected: dict[int, str] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    examples: dict[int, float] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    coefficients: list[float] | None = None
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many replies could not be used, by what became of them, as metrics name it."""
        return dict(zip(BECAME, map(len, (self.failed, self.rejected, self.lost)), strict=True))


def in_words(counts: Mapping[str, Any]) -> str:
    """What became of replies, of a report's counts or of a round's metrics."""
    return ", ".join(f"{counts[name]} {word}" for name, word in BECAME.items())


@dataclass(frozen=True)
class Sifted:
    """The replies of a round, each where it belongs.

    Attributes:
        good: client ids and contents that can be used, by rising id.
        failed: reason by client id, of clients that answered with an error.
        rejected: reason by client id, of replies that cannot be used.
        lost: client ids of which nothing arrived.
    """

    good: list[tuple[int, RecordDict]]
    failed: dict[int, str]
    rejected: dict[int, str]
    lost: list[int]


def sift(
    replies: Iterable[Message],
    asked: Mapping[int, Message],
    directory: Directory,
    expected: Mapping[str, Tensor],
    weight_key: str,
    check: Callable[[Mapping[str, Tensor]], str | None] | None = None,
) -> Sifted:
    """Check every reply of a training round before any rule sees it.

    Args:
        replies: in any order; also such that nobody asked for.
        asked: the message that each client of the round was sent.
        directory: of the clients.
        expected: the tensors that a reply must hold, exactly.
        weight_key: the metric that holds its number of examples.
        check: says what else is wrong with the tensors of a reply.
    """
    form, found = ReplyForm(expected, weight_key, check), Sifted([], {}, {}, [])
    answered: set[int] = set()
    for message in replies:
        node = message.metadata.src_node_id
        if not directory.knows(node):
            found.rejected[node] = "is of a node that is no client"
            continue
        client = directory.client(node)
        if fault := _misplaced(message, asked.get(client), client in answered):
            found.rejected[client] = fault
            continue
        answered.add(client)
        if message.has_error():
            found.failed[client] = reason_of(message)
        elif fault := form.fault(message.content):
            found.rejected[client] = fault
        else:
            found.good.append((client, message.content))
    found.good.sort(key=lambda pair: pair[0])
    found.lost.extend(client for client in asked if client not in answered)
    return found


def _misplaced(message: Message, asked: Message | None, again: bool) -> str | None:
    """Why a reply does not belong to this round, or None."""
    if asked is None:
        return "was not asked in this round"
    if message.metadata.message_type != asked.metadata.message_type:
        return f"answers a message of type {message.metadata.message_type!r}"
    known, answers = asked.metadata.message_id, message.metadata.reply_to_message_id
    if known and answers and known != answers:
        return "answers an earlier round"
    return "sent twice" if again else None


def reason_of(reply: Message) -> str:
    """Why a client failed: the last line of what Flower passes on, which may be a traceback."""
    lines = [line.strip() for line in ANSI.sub("", reply.error.reason or "").splitlines()]
    said = [line for line in lines if line]
    return said[-1].removesuffix("'>") if said else "unknown error"
