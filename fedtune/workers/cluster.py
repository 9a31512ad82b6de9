"""Ray, on this machine or on a cluster that is up."""

from __future__ import annotations

import logging
import os
import socket
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from fedtune.errors import ScenarioError, first_line

SECONDS = 10.0


@dataclass(frozen=True)
class Machine:
    """What a machine has."""

    cores: int
    cards: int

    def room(self, cores: int, cards: int) -> int:
        """How many workers of so many cores and GPUs it has room for."""
        return min(self.cores // cores, self.cards // cards if cards else self.cores)


def this_machine() -> list[Machine]:
    """The only machine, where no address is given."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [Machine(len(os.sched_getaffinity(0)), cards)]


def connect(address: str | None, cores: int = 0) -> list[Machine]:
    """Join a cluster, or start Ray on this machine; gives the machines that Ray has.

    Args:
        address: of the cluster, as `ray.init` takes it; None: this machine, with
        cores: as many as Ray is told that it has.

    Raises:
        ScenarioError: if Ray is absent, or no cluster is there.
    """
    if find_spec("ray") is None:
        raise ScenarioError(
            "engine.workers: needs Ray; pip install 'fedtune[ray]', or leave it out"
        )
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not ray.is_initialized():
        try:
            if address is None:
                ray.init("local", num_cpus=cores, include_dashboard=False, **quiet)
            else:
                _check_there(address)
                ray.init(address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise ScenarioError(f"engine.ray_address = {address!r}: {first_line(error)}") from None
    up = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in up]


def _check_there(address: str) -> None:
    """Raise `OSError` if nobody answers, for which Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=SECONDS).close()


def is_connected() -> bool:
    """Whether this process has Ray already."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def disconnect() -> None:
    """Leave the cluster, or end Ray on this machine."""
    import ray

    ray.shutdown()


def room(machines: list[Machine], cores: int, cards: int) -> int:
    """How many workers of so many cores and GPUs fit."""
    return sum(m.room(cores, cards) for m in machines)
