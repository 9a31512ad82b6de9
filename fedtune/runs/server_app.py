"""fedtune's ServerApp: the same run as in the cohort engine, over Flower's grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedtune.runs import api
from fedtune.runs.flower import OUT, REPORT, RESUME, SCENARIO, check_out, scenario_of
from fedtune.runs.observing import Observer
from fedtune.runs.progress import ConsoleObserver
from fedtune.runs.server_files import Reporting, write_failure

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or take up, the scenario of the run configuration.

    Run-config keys: `scenario` (text, file or name), `out` (the run directory; by default a new one
    under `runs/`), `resume` (whether `out` is a run to go on with) and `report` (a folder for the
    files that tell another process how it goes).
    """
    serve(grid, context.run_config)


def serve(
    grid: Grid, config: Mapping[str, Any], around: Callable[[Observer], Observer] = lambda o: o
) -> None:
    """Run, or take up, what a run configuration says, over a grid.

    Args:
        around: puts another observer around the console's.
    """
    out, report = str(config.get(OUT, "")), str(config.get(REPORT, ""))
    console = ConsoleObserver()
    observer = around(Reporting(Path(report), console) if report else console)
    try:
        scenario = scenario_of(config)
        check_out(scenario, config)
        if config.get(RESUME, False):
            directory = api.resume(out, observer=observer, grid=grid)
        else:
            path = Path(out) if out else api.new_path(_name(str(config.get(SCENARIO, ""))))
            directory = api.run(scenario, out=path, observer=observer, grid=grid)
        console.closing(directory)
    except Exception as error:
        if report:
            write_failure(Path(report), error)
        raise


def _name(text: str) -> str:
    return Path(text).stem if text and "=" not in text else "run"
