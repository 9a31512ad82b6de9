"""How OpenMP's threads wait for each other: without spinning, unless the user has said otherwise.

Threads that spin while they wait take the core from whoever else works on the machine: two runs of
two threads on two cores are each forty times slower than alone. OpenMP reads its settings once,
when torch is loaded, so `wait_passively` comes before that.
"""

from __future__ import annotations

import os
import sys

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_STATE = {"late": False}


def wait_passively() -> None:
    """Let threads sleep while they wait, where that can still be said and the user has not."""
    if not any(name in os.environ for name in SETTINGS):
        _STATE["late"] = "torch" in sys.modules
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def spins() -> bool:
    """Whether threads of this process spin though nobody asked for it: torch was loaded before."""
    return _STATE["late"]


def described() -> str:
    """How the threads of this process wait, for people."""
    if spins():
        return "threads spin while they wait (torch was imported before fedtune)"
    given = ", ".join(f"{n}={os.environ[n]}" for n in SETTINGS if n in os.environ)
    return f"threads wait as {given} says"
