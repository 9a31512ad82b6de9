"""What a usable reply is; anything else is set aside, counted and named."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedtune.grids.arrays import records, to_tensor, to_tensors
from fedtune.grids.directory import Directory
from fedtune.rules.flat import are_finite

MOST_EXAMPLES = 1e12
DECLINED = 1001  # code of a client that takes no part of its own will
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
        coefficients: of the used clients' updates, where the rule is a linear combination.
        notes: what else the rule says.
    """

    sampled: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    rejected: dict[int, str] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    examples: dict[int, float] = field(default_factory=dict)
    coefficients: list[float] | None = None
    notes: dict[str, float] = field(default_factory=dict)


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
    check: Callable[[dict[str, Tensor]], str | None] = lambda tensors: None,
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
    found = Sifted([], {}, {}, [])
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
        elif fault := reply_fault(message.content, expected, weight_key) or check(
            to_tensors(records(message.content, ArrayRecord)[0])
        ):
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


def reply_fault(content: RecordDict, expected: Mapping[str, Tensor], weight_key: str) -> str | None:
    """Why a training reply cannot be used, or None.

    Args:
        content: of the reply: one ArrayRecord and one MetricRecord.
        expected: the tensors it must hold, exactly.
        weight_key: the metric that holds its number of examples.
    """
    arrays, metrics_found = records(content, ArrayRecord), records(content, MetricRecord)
    if len(arrays) != 1 or len(metrics_found) != 1:
        return "must hold exactly one ArrayRecord and one MetricRecord"
    metrics = metrics_found[0]
    if fault := metrics_fault(metrics, weight_key):
        return fault
    if metrics[weight_key] == 0:
        return f"{weight_key} = 0: must be a number above 0"
    return _array_fault(arrays[0], expected)


def reason_of(reply: Message) -> str:
    """Why a client failed: the last line of what Flower passes on, which may be a traceback."""
    lines = [line.strip() for line in ANSI.sub("", reply.error.reason or "").splitlines()]
    said = [line for line in lines if line]
    return said[-1].removesuffix("'>") if said else "unknown error"


def metrics_fault(metrics: MetricRecord, weight_key: str) -> str | None:
    """Why metrics cannot be averaged, or None; the weight may be 0."""
    for key, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"metric {key} = {value!r}: must be one finite number"
    weight = metrics.get(weight_key)
    if not isinstance(weight, int | float) or not 0 <= weight <= MOST_EXAMPLES:
        return f"{weight_key} = {weight!r}: must be a number above 0"
    return None


def _array_fault(record: ArrayRecord, expected: Mapping[str, Tensor]) -> str | None:
    if missing := expected.keys() - record.keys():
        return f"misses {min(missing)}"
    if surplus := record.keys() - expected.keys():
        return f"holds {min(surplus)}, which was not asked for"
    found: dict[str, Tensor] = {}
    for name, sent in expected.items():
        try:
            tensor = to_tensor(record[name])
        except Exception as error:  # whatever bytes a client may send
            return f"{name} cannot be read ({type(error).__name__}: {error})"
        for shape in (tuple(record[name].shape), tuple(tensor.shape)):
            if shape != tuple(sent.shape):
                return f"{name} has shape {shape}, not {tuple(sent.shape)}"
        if _kind(tensor) != _kind(sent):
            return f"{name} has dtype {tensor.dtype}, not {sent.dtype}".replace("torch.", "")
        found[name] = tensor.to(sent) - sent
    if are_finite(found.values()):
        return None
    broken = next(name for name, tensor in found.items() if not are_finite([tensor]))
    return f"{broken} holds NaN or Inf as float32"


def _kind(tensor: Tensor) -> str:
    """Kind of numbers: a float of another width can be used, an integer for a float cannot."""
    if tensor.is_complex() or tensor.dtype == torch.bool:
        return str(tensor.dtype)
    return "float" if tensor.is_floating_point() else "integer"
