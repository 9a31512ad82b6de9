"""The only module that touches what Flower does not export; tried with Flower 1.41."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import (
    FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE,
    SUPERLINK_NODE_ID,
    ErrorCode,
    SType,
)
from flwr.common.serde import (
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "CHUNK_BYTES",
    "CLIENT_RAISED",
    "NUMPY_STYPE",
    "Run",
    "array_record",
    "arrays_of",
    "content_from_bytes",
    "content_to_bytes",
    "envelope_bytes",
    "make_run",
    "message_from_bytes",
    "message_to_bytes",
    "set_message_id",
    "task_identity",
    "with_content",
]

CHUNK_BYTES: int = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
CLIENT_RAISED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
NUMPY_STYPE: str = str(SType.NUMPY)
_FIELDS = ("_task_id", "_run_id", "_node_id")


@contextmanager
def task_identity(run_id: int) -> Iterator[None]:
    """Let `Message(...)` be made in this process, as Flower's own server processes do.

    Flower keeps the identity in private class attributes of the process; they are put back as
    they were.
    """
    before = {name: getattr(TaskIdentity, name) for name in _FIELDS}
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SUPERLINK_NODE_ID
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def array_record(arrays: MutableMapping[str, Array]) -> ArrayRecord:
    """A record that keeps its arrays in a mapping, whose keys and values it does not look at."""
    record = ArrayRecord()
    record.__dict__["_data"] = arrays
    return record


def arrays_of(record: ArrayRecord) -> object:
    """What a record keeps its arrays in."""
    return record.__dict__["_data"]


def make_run(run_id: int) -> Run:
    """Flower's description of a run."""
    return Run.create_empty(run_id)


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as the SuperLink does."""
    message.metadata.__dict__["_message_id"] = message_id


def with_content(message: Message, content: RecordDict) -> Message:
    """The same message with other content."""
    return Message(metadata=message.metadata, content=content)  # type: ignore[call-overload, no-any-return]


def envelope_bytes(message: Message) -> int:
    """Bytes of a message's own object as Flower stores and sends it, without its content."""
    if message.has_error():
        return len(message.deflate())
    return len(with_content(message, RecordDict()).deflate())


def message_to_bytes(message: Message) -> bytes:
    """A whole message, its content included, as protocol buffers."""
    data: bytes = message_to_proto(message).SerializeToString()
    return data


def message_from_bytes(data: bytes) -> Message:
    """The message of `message_to_bytes`."""
    return message_from_proto(MessageProto.FromString(data))


def content_to_bytes(content: RecordDict) -> bytes:
    """A message's content as protocol buffers."""
    data: bytes = recorddict_to_proto(content).SerializeToString()
    return data


def content_from_bytes(data: bytes) -> RecordDict:
    """The content of `content_to_bytes`."""
    return recorddict_from_proto(RecordDictProto.FromString(data))
