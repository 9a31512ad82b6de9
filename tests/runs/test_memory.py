"""Memory over many rounds: flat."""

from __future__ import annotations

import gc
import os

import psutil
import pytest

import fedtune
from tests.runs.kit import small

pytestmark = pytest.mark.long
ROUNDS, WARM = 200, 50
GROWTH = 1.02


def is_worker(process: psutil.Process) -> bool:
    try:
        return "ray::Worker" in "".join(process.cmdline())
    except psutil.Error:  # gone, or nearly
        return False


class Watch:
    """Notes what this process and its workers hold after each round."""

    def __init__(self, workers: int) -> None:
        self.workers, self.held = workers, []

    def started(self, run) -> None:
        """Nothing yet."""

    def finished_round(self, line) -> None:
        gc.collect()
        mine = psutil.Process(os.getpid())
        children = mine.children(recursive=True)
        workers = [p for p in children if is_worker(p)]
        assert len(workers) == self.workers
        self.held.append(sum(p.memory_info().rss for p in [mine, *workers]))


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_memory_does_not_grow_over_two_hundred_rounds(tmp_path, strategy, workers):
    if workers:
        pytest.importorskip("ray", reason="needs fedtune[ray]")
    overrides = small(
        run__rounds=ROUNDS, run__eval_every=20, run__checkpoint_every=20, strategy__name=strategy,
        local__optimizer="sgd", engine__workers=workers,
    )  # fmt: skip
    watch = Watch(workers or 0)
    fedtune.run("quickstart", overrides, tmp_path / "run", watch, pictures=False)
    early, late = max(watch.held[WARM - 20 : WARM]), max(watch.held[-20:])
    assert late <= GROWTH * early, f"{early / 2**20:.1f} MiB, then {late / 2**20:.1f}"
