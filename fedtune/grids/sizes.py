"""Bytes of messages by arithmetic: payload (the numbers) and framing (all that Flower adds).

Flower stores and sends a message as a tree of objects: Message, RecordDict, records, Array,
ArrayChunk. Each is a head `type ids length NUL` and a body. Flower leaves out objects whose content
it holds already (two equal arrays); here every object counts, so the sum is what a message costs
on an empty store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import prod

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedtune.adapters.packed import Key
from fedtune.grids.arrays import dtype_name, packed, records
from fedtune.grids.compat import CHUNK_BYTES, NUMPY_STYPE, envelope_bytes

_ID = "0" * 64
_MOST_KNOWN = 4096
_known: dict[Hashable, int] = {}


@dataclass(frozen=True)
class Size:
    """Bytes of messages.

    Attributes:
        payload: bytes of the arrays' numbers.
        framing: everything else.
    """

    payload: int = 0
    framing: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.payload + other.payload, self.framing + other.framing)


def message_size(message: Message) -> Size:
    """Bytes of a message, without serialising its arrays."""
    if message.has_error():
        return Size(0, envelope_bytes(message))
    content = message.content
    try:
        return _by_arithmetic(message, content)
    except TypeError:  # an array of a dtype that NumPy does not have
        arrays = [array for record in records(content, ArrayRecord) for array in record.values()]
        return Size(sum(len(array.data) for array in arrays), envelope_bytes(message))


def _by_arithmetic(message: Message, content: RecordDict) -> Size:
    payload, framing = 0, _envelope(message) + _own("RecordDict", tuple(content))
    for record in content.values():
        if isinstance(record, ArrayRecord):
            size = _arrays(record)
            payload, framing = payload + size.payload, framing + size.framing
        else:
            framing += _values(record)
    return Size(payload, framing)


def _arrays(record: ArrayRecord) -> Size:
    if (whole := packed(record)) is not None:
        return _packed(whole.places.key, whole.vector.dtype)
    return _array_record(tuple((n, a.dtype, a.shape, a.stype) for n, a in record.items()))


@lru_cache(maxsize=256)
def _packed(key: Key, dtype: torch.dtype) -> Size:
    return _array_record(tuple((n, dtype_name(dtype), shape, NUMPY_STYPE) for n, shape in key))


def _envelope(message: Message) -> int:
    told = message.metadata
    fields = (
        told.run_id, told.src_node_id, told.dst_node_id, told.src_task_id, told.dst_task_id,
        told.reply_to_message_id, told.group_id, told.message_type, told.ttl, told.created_at,
    )  # fmt: skip
    unset = told.ttl == 0.0, told.created_at == 0.0  # protocol buffers leave these out
    return _once((Message, unset, _widths(fields)), lambda: envelope_bytes(message))


def _values(record: MetricRecord | ConfigRecord) -> int:
    if any(isinstance(value, list) for value in record.values()):
        return len(record.deflate())
    key = (type(record), tuple(record), _widths(record.values()))
    return _once(key, lambda: len(record.deflate()))


def _once(key: Hashable, serialised: Callable[[], int]) -> int:
    """Bytes of what was serialised once for all that have this key."""
    if (size := _known.get(key)) is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        size = _known[key] = serialised()
    return size


def _widths(values: Iterable[object]) -> tuple[Hashable, ...]:
    """What decides how many bytes protocol buffers take for values: their kinds and lengths."""
    return tuple([_width(value) for value in values])


def _width(value: object) -> Hashable:
    if isinstance(value, int):
        return type(value), value < 0, (~value if value < 0 else value).bit_length()
    if isinstance(value, str | bytes):
        return type(value), len(value.encode() if isinstance(value, str) else value)
    return type(value).__name__


def _payload(dtype: str, shape: tuple[int, ...]) -> int:
    return prod(shape) * np.dtype(dtype).itemsize


@lru_cache(maxsize=256)
def _own(kind: str, names: tuple[str, ...]) -> int:
    """Bytes of an object that refers to others by names."""
    return _object(kind, len(names), len(json.dumps(dict.fromkeys(names, _ID))))


def _object(kind: str, children: int, body: int) -> int:
    ids = max(0, children * (len(_ID) + 1) - 1)
    return len(f"{kind}  {body}") + ids + 1 + body


Signature = tuple[tuple[str, str, tuple[int, ...], str], ...]


@lru_cache(maxsize=256)
def _array_record(signature: Signature) -> Size:
    payload = sum(_payload(dtype, shape) for _, dtype, shape, _ in signature)
    own = _own("ArrayRecord", tuple(name for name, *_ in signature))
    whole = own + sum(_array(dtype, shape, stype) for _, dtype, shape, stype in signature)
    return Size(payload, whole - payload)


def _array(dtype: str, shape: tuple[int, ...], stype: str) -> int:
    data = _npy_bytes(dtype, shape)
    chunks = [min(CHUNK_BYTES, data - start) for start in range(0, data, CHUNK_BYTES)]
    meta = {
        "dtype": dtype,
        "shape": shape,
        "stype": stype,
        "arraychunk_ids": list(range(len(chunks))),
    }
    own = _object("Array", len(chunks), len(json.dumps(meta)))
    return own + sum(_object("ArrayChunk", 0, chunk) for chunk in chunks)


def _npy_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    header = BytesIO()
    kind = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(
        header, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return len(header.getvalue()) + _payload(dtype, shape)
