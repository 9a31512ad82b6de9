"""Shared fixtures: tiny random models of the common architectures, made once."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("fedtune", deadline=None)  # a slow machine is no failure
settings.load_profile("fedtune")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
