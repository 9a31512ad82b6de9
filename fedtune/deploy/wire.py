"""Between a SuperNode's ClientApp and the resident trainer: frames over a Unix socket.

A message is two frames, a JSON header and a body of bytes, each after its length. Nothing in it is
ever executed or unpickled. This module imports neither torch nor Flower.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

LENGTH = struct.Struct(">Q")
MOST_HEADER, MOST_BODY = 1 << 24, 1 << 34
PIECE = 1 << 20


class Broken(ConnectionError):
    """The other side sent what is no message, or stopped in the middle of one."""


def send(connection: socket.socket, header: dict[str, Any], body: bytes = b"") -> None:
    """Send a message."""
    head = json.dumps(header).encode()
    connection.sendall(LENGTH.pack(len(head)) + head + LENGTH.pack(len(body)))
    connection.sendall(body)


def receive(
    connection: socket.socket, most: int = MOST_BODY, seconds: float | None = None
) -> tuple[dict[str, Any], bytes]:
    """Receive a message.

    Args:
        most: bytes that its body may have.
        seconds: until it must have come whole; None: any time.

    Raises:
        Broken: if it is none, too large or too late.
    """
    end = None if seconds is None else time.monotonic() + seconds
    try:
        header = json.loads(_frame(connection, MOST_HEADER, end))
    except (ValueError, RecursionError) as error:
        raise Broken(f"the header is no JSON ({error})") from None
    if not isinstance(header, dict):
        raise Broken("the header is no JSON object")
    return header, _frame(connection, most, end)


def _frame(connection: socket.socket, most: int, end: float | None) -> bytes:
    (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size, end))
    if length > most:
        raise Broken(f"a frame of {length:,} bytes; allowed: {most:,}")
    return _exactly(connection, length, end)


def _exactly(connection: socket.socket, count: int, end: float | None) -> bytes:
    """Memory grows with what comes, not with what was announced."""
    found = bytearray()
    while len(found) < count:
        if end is not None:
            left = end - time.monotonic()
            if left <= 0:
                raise Broken("the message did not come whole in time")
            connection.settimeout(left)
        piece = connection.recv(min(PIECE, count - len(found)))
        if not piece:
            raise Broken("the other side closed the connection")
        found += piece
    return bytes(found)
