"""`fedtune deploy trainer`: one process that listens, answers, and frees what it does not need."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedtune.deploy import wire
from fedtune.deploy.settings import ClientSettings
from fedtune.errors import ScenarioError
from fedtune.files import Locked, locked

if TYPE_CHECKING:
    from fedtune.deploy.trainer import Trainer

LOGGER = logging.getLogger("fedtune.trainer")
MODE, OWN = 0o660, 0o700
PATIENCE = 60.0


def serve(settings: ClientSettings) -> None:
    """Answer messages until the process is told to end.

    Raises:
        ScenarioError: if another trainer uses the store, or the socket cannot be made.
    """
    signal.signal(signal.SIGTERM, _end)
    store = Path(settings.store)
    os.umask(0o077)
    store.mkdir(parents=True, exist_ok=True, mode=OWN)
    store.chmod(OWN)
    os.environ["HF_DATASETS_CACHE"] = str(store / "cache")  # copies of the data stay here too
    try:
        with locked(store / ".lock"), listening(Path(settings.socket)) as listener:
            from fedtune.deploy.trainer import Trainer

            trainer = Trainer(settings)
            LOGGER.info("client %d: ready at %s", settings.client, settings.socket)
            while True:
                listener.settimeout(settings.idle)
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    trainer.release()
                    continue
                except OSError as error:
                    LOGGER.warning("no connection: %s", error)
                    time.sleep(1.0)
                    continue
                with connection:
                    _answer(trainer, connection, settings.accepts.message_bytes)
    except Locked:
        raise ScenarioError(f"store = {settings.store!r}: another trainer uses it now") from None


def _end(number: int, frame: object) -> None:
    raise SystemExit(0)


def _answer(trainer: Trainer, connection: socket.socket, most: int) -> None:
    try:
        asked = wire.receive(connection, most, PATIENCE)
        connection.settimeout(PATIENCE)
        wire.send(connection, *trainer.answer(*asked))
    except Exception as error:  # whatever a bundle may send, the next message is answered
        LOGGER.warning("a connection broke: %s", error)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A Unix socket that this user and its group can reach, for as long as the context lasts.

    Raises:
        ScenarioError: if it cannot be made there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~MODE)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise ScenarioError(f"socket = {str(path)!r}: {error}") from None
    finally:
        os.umask(before)
    listener.listen()
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)
