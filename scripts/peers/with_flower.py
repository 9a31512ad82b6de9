"""Runs flower_app.py on Flower's Simulation Runtime, one Ray actor of one thread a core."""

from __future__ import annotations

import os

from flower_app import JOB_FOLDER, client_app, server_app
from flwr.simulation import run_simulation
from job import read_job

if __name__ == "__main__":
    job = read_job()
    os.environ[JOB_FOLDER] = str(job.folder)
    cores = os.cpu_count() or 1
    run_simulation(
        server_app,
        client_app,
        len(job.told["parts"]),
        backend_config={
            "init_args": {"num_cpus": cores, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
