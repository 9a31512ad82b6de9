"""Between a SuperNode's ClientApp and the resident trainer: frames over a Unix socket.

A message is two frames, a JSON header and a body of bytes, each after its length. Nothing in it is
ever executed or unpickled. This module imports neither torch nor Flower.
"""

from __future__ import annotations

import json
import socket
import struct
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


def receive(connection: socket.socket, most: int = MOST_BODY) -> tuple[dict[str, Any], bytes]:
    """Receive a message.

    Args:
        most: bytes that its body may have.

    Raises:
        Broken: if it is none, or too large.
    """
    try:
        header = json.loads(_frame(connection, MOST_HEADER))
    except ValueError as error:
        raise Broken(f"the header is no JSON ({error})") from None
    if not isinstance(header, dict):
        raise Broken("the header is no JSON object")
    return header, _frame(connection, most)


def _frame(connection: socket.socket, most: int) -> bytes:
    (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    if length > most:
        raise Broken(f"a frame of {length:,} bytes; allowed: {most:,}")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    """Memory grows with what comes, not with what was announced."""
    found = bytearray()
    while len(found) < count:
        piece = connection.recv(min(PIECE, count - len(found)))
        if not piece:
            raise Broken("the other side closed the connection")
        found += piece
    return bytes(found)
