"""The job in fedtune: a whole run, its files and final evaluation included."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fedtune


class Clock:
    """An observer that notes when rounds end."""

    def __init__(self) -> None:
        self.ready, self.ends = 0.0, []

    def started(self, run: Any) -> None:
        self.ready = time.time()

    def finished_round(self, line: dict[str, Any]) -> None:
        self.ends.append(time.time())


def main() -> None:
    overrides = json.loads((Path(sys.argv[1]) / "overrides.json").read_text("utf-8"))
    overrides["engine.threads"] = int(os.environ["PEER_THREADS"])
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run = fedtune.run("quickstart", overrides, Path(folder) / "run", clock, pictures=False)
        accuracy = run.summary["final"]["accuracy"]
    found = {"ready": clock.ready, "ends": clock.ends, "accuracy": accuracy}
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
