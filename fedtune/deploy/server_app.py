"""The ServerApp of a deployment: the same run as in a simulation, over real clients."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedtune.deploy.events import EventLog
from fedtune.errors import ScenarioError
from fedtune.grids.deployed_grid import DeployedGrid, nodes_of
from fedtune.runs.flower import NODES, OUT, REPORT, scenario_of
from fedtune.runs.server_app import serve
from fedtune.runs.server_files import end_with_owner

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or take up, the scenario of the run configuration.

    Run-config keys: those of `fedtune.runs.server_app`, `nodes` (client ids and node ids of the
    registered SuperNodes) and `federation` (names what clients keep).
    """
    config = context.run_config
    out = str(config.get(OUT, ""))
    if not out:
        raise ScenarioError("run-config key 'out' is empty: give the run directory")
    if report := str(config.get(REPORT, "")):
        end_with_owner(Path(report))
    log = EventLog(Path(out))
    nodes = nodes_of(str(config.get(NODES, "")))
    deployed = DeployedGrid(grid, nodes, scenario_of(config).deploy, log.tell)
    serve(deployed, config, log.around)
