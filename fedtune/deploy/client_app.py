"""The ClientApp of a deployment: hands each message to the resident trainer and its answer back.

Flower starts a new process for every message; this one imports no torch. What it says of itself is
believed by nobody: the trainer decides what is done.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedtune.deploy import wire
from fedtune.grids.compat import content_from_bytes, message_to_bytes

TRAINER, SCENARIO, FEDERATION = "trainer", "scenario", "federation"
PATIENCE, PAUSE = 120.0, 0.1
UNREACHABLE = 1002

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Have the trainer train from what was sent."""
    return passed_on(message, context)


@app.train("opening")
def opening(message: Message, context: Context) -> Message:
    """Have the trainer say what is needed of this client before the first round."""
    return passed_on(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Have the trainer evaluate this client's own head."""
    return passed_on(message, context)


def passed_on(message: Message, context: Context) -> Message:
    """The trainer's answer to a message, or why there is none."""
    path = Path(str(context.node_config.get(TRAINER, "trainer.sock")))
    asked = {key: str(context.run_config.get(key, "")) for key in (SCENARIO, FEDERATION)}
    try:
        with reached(path) as connection:
            wire.send(connection, asked, message_to_bytes(message))
            header, body = wire.receive(connection)
    except OSError as error:
        reason = f"the trainer at {path} gave no answer ({error})"
        return Message(Error(UNREACHABLE, reason), reply_to=message)
    if "code" in header:
        return Message(Error(int(header["code"]), str(header["reason"])), reply_to=message)
    return Message(content_from_bytes(body), reply_to=message)


def reached(path: Path, patience: float = PATIENCE) -> socket.socket:
    """A connection to the trainer, which may just be starting.

    Raises:
        OSError: if it does not listen in time.
    """
    deadline = time.monotonic() + patience
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)
        else:
            return connection
