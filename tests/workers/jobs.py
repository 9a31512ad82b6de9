"""Jobs for workers that go wrong, once or always."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from fedtune.cohort.jobs import trained

MARK = "FEDTUNE_TEST_MARK"
SPARE = "FEDTUNE_TEST_SPARE"  # set on machines that may be lost


def first() -> bool:
    """Whether no worker was here before."""
    try:
        Path(os.environ[MARK]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def dies_once(backend, cohort, server_round):
    """Train, and die before it is told, the first time."""
    done = trained(backend, cohort, server_round)
    if first():
        os._exit(9)
    return done


def takes_its_machine_along(backend, cohort, server_round):
    """Train, and end the machine's Ray before it is told, the first time and on a spare one."""
    done = trained(backend, cohort, server_round)
    if SPARE in os.environ and first():
        os.kill(os.getppid(), signal.SIGKILL)  # the raylet
        os._exit(9)
    return done


def always_dies(backend, cohort, server_round):
    os._exit(9)


def full_once(backend, cohort, server_round):
    """Run out of memory, the first time."""
    if first():
        raise torch.OutOfMemoryError("no room")
    return trained(backend, cohort, server_round)


def hates_client_one(backend, cohort, server_round):
    if any(work.client == 1 for work in cohort):
        raise ValueError("not this one")
    return trained(backend, cohort, server_round)
