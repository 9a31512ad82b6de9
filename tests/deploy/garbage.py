"""A trainer that lies: wrong shapes, NaN, a missing key, a huge array, no answer at all.

python -m tests.deploy.garbage SOCKET
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedtune.deploy import wire
from fedtune.deploy.serving import listening
from fedtune.grids.compat import content_to_bytes, message_from_bytes

HUGE = 30_000_000


def lie(server_round: int, arrays: ArrayRecord) -> ArrayRecord:
    """What is sent in a round."""
    told = {name: array.numpy() for name, array in arrays.items()}
    first = min(told)
    if server_round == 1:
        told[first] = told[first].reshape(-1)[:1]
    elif server_round == 2:
        told[first] = np.full_like(told[first], np.nan)
    elif server_round == 3:
        del told[first]
    elif server_round == 4:
        told[first] = np.zeros(HUGE, dtype=told[first].dtype)
    else:
        time.sleep(3600)
    return ArrayRecord({name: Array(array) for name, array in told.items()})


def main() -> None:
    """Answer until killed."""
    with listening(Path(sys.argv[1])) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                _, body = wire.receive(connection)
                content = message_from_bytes(body).content
                number = int(str(content["config"]["server-round"]))
                metrics = MetricRecord({"num-examples": 5, "loss": 1.0})
                said = RecordDict({"arrays": lie(number, content["arrays"]), "metrics": metrics})
                wire.send(connection, {}, content_to_bytes(said))


if __name__ == "__main__":
    main()
