"""`engine.threads = "auto"`: as many CPU threads as the job's own step gains by, no more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import psutil
import torch

from fedtune.cohort.absent import AbsentBackend
from fedtune.cohort.backend import Backend
from fedtune.cohort.plan import ClientWork
from fedtune.cohort.sizing import fitting_size
from fedtune.cohort.together import CohortBackend
from fedtune.randomness import key_of
from fedtune.waiting import spins

_OWN_THREADS: int = torch.get_num_threads()
NEARLY = 1.12
LOOK_SECONDS, LONG_STEP = 0.2, 0.5
CLIENTS, REPEATS = 8, 3


def own_threads() -> int:
    """The most threads that a run may have: torch's own number as it was when this was loaded."""
    return 1 if spins() else _OWN_THREADS


def auto_threads(backend: Backend) -> int:
    """How many threads of this machine a backend trains with.

    On a GPU, and where only shapes are held, the most: no step depends on it. Else the number that
    `fewest_nearly_as_fast` finds among 1, 2, 4, … and the free cores. Where threads spin while they
    wait it is one: more would stop whoever else works on the machine (`fedtune.waiting`).
    """
    if backend.setting.device.type != "cpu" or isinstance(backend, AbsentBackend):
        return own_threads()
    most = own_threads() if own_threads() == 1 else min(own_threads(), free_cores())
    counts = sorted({most, *(1 << power for power in range(most.bit_length()))})
    return counts[0] if len(counts) == 1 else fewest_nearly_as_fast(step_of(backend), counts)


def fewest_nearly_as_fast(step: Callable[[], object], counts: list[int]) -> int:
    """The least number of threads whose time for a step is within `NEARLY` of the best.

    Begun with the most: once fewer are slower than that, still fewer are not tried.

    Args:
        step: what is timed; a short one after a call to warm up.
        counts: numbers of threads to try, rising.
    """
    times: dict[int, float] = {}
    for count in reversed(counts):
        times[count] = _seconds(step, count)
        if times[count] > NEARLY * min(times.values()):
            break
    best = min(times.values())
    return min(count for count, seconds in times.items() if seconds <= NEARLY * best)


def free_cores() -> int:
    """Cores that this process may use and that nobody uses now; at least one."""
    busy: list[float] = psutil.cpu_percent(LOOK_SECONDS, percpu=True)
    everywhere = set(range(len(busy)))
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else everywhere
    return max(1, round(sum(1.0 - busy[core] / 100.0 for core in allowed & everywhere)))


def step_of(backend: Backend) -> Callable[[], object]:
    """A step of a cohort as a round has it, full batches of the training data and the optimiser.

    Of as many clients as fit into a cohort, at most `CLIENTS`.
    """
    setting = backend.setting
    rows = np.arange(len(setting.data)) if len(setting.data) else np.zeros(1, dtype=np.int64)
    state = {n: t.to(setting.device, setting.master) for n, t in setting.adapted.initial.items()}

    def work(client: int) -> ClientWork:
        size = setting.local.batch_size
        chosen = np.take(rows, np.arange(client * size, (client + 1) * size), mode="wrap")
        return ClientWork(client, state, ((chosen,),), (1,), key_of("threads", client), len(chosen))

    works = [work(0)]
    if _timed(lambda: backend.train(works, 1)) <= LONG_STEP and isinstance(backend, CohortBackend):
        most = min(CLIENTS, fitting_size(backend, works[0]))
        works = [work(client) for client in range(most)]
    return lambda: backend.train(works, 1)


def _seconds(step: Callable[[], object], count: int) -> float:
    torch.set_num_threads(count)
    first = _timed(step)
    if first > LONG_STEP:
        return first
    return min(_timed(step) for _ in range(REPEATS))


def _timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
