"""Runs: building one from a scenario, its rounds, its directory, resuming and exporting it."""
