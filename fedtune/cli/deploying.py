"""`fedtune deploy`: certificates, keys, clients, and a federation on this machine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from fedtune.cli.options import Interrupted, Json, SetOption
from fedtune.cli.printing import print_json
from fedtune.errors import RunError, ScenarioError
from fedtune.scenario import load_scenario

app = typer.Typer(
    name="deploy",
    help="The same scenario as real server and client processes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def up(
    scenario: Annotated[str | None, typer.Argument(help="A TOML file, or a name.")] = None,
    clients: Annotated[
        int | None, typer.Option(help="How many; by default the scenario's clients.count.")
    ] = None,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="The run directory to make.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with the deployment in DIR.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a scenario with a SuperLink and SuperNodes on this machine, TLS and keys switched on."""
    if (scenario is None) == (resume is None):
        raise ScenarioError("give a SCENARIO or --resume DIR, one of the two")
    count = [] if clients is None else [f"clients.count={clients}"]
    if resume is not None and (count or out):
        raise ScenarioError("--resume: clients and directory are settled; leave the others out")
    settled = None if scenario is None else load_scenario(scenario, [*(set_ or []), *count])
    if not as_json:
        typer.echo("starting a SuperLink and its clients ...", err=True)
    from fedtune.deploy import federation
    from fedtune.runs import api
    from fedtune.runs.progress import ConsoleObserver

    observer = ConsoleObserver(quiet=as_json)
    path = resume or out or api.new_path(f"deploy-{Path(scenario or 'run').stem}")
    more = f"finished rounds are kept; go on with: fedtune deploy up --resume {path}"
    try:
        if settled is not None:
            directory = federation.up(settled, path, observer)
        else:
            directory = federation.go_on(path, observer, set_ or [])
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {more}") from None
    except RunError as error:
        raise RunError(f"{error}; {more}") from error
    finally:
        observer.close()
    if as_json:
        print_json({"directory": str(directory.path), **directory.summary})
    else:
        observer.closing(directory)


@app.command()
def certs(
    hosts: Annotated[list[str], typer.Argument(help="Names and addresses of the server.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("certificates"),
    days: Annotated[int, typer.Option(min=1, help="Until they expire.")] = 825,
) -> None:
    """Make a certificate authority and a server certificate that it signs."""
    from fedtune.deploy.certificates import make_certificates

    typer.echo("\n".join(map(str, make_certificates(out, hosts, days))))


@app.command()
def keys(
    names: Annotated[list[str], typer.Argument(help="A name for each client.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("keys"),
) -> None:
    """Make a key pair for each client: NAME stays with it, NAME.pub goes to the server."""
    from fedtune.deploy.certificates import make_client_keys

    typer.echo("\n".join(map(str, make_client_keys(out, names))))


@app.command()
def digest(base: Annotated[str, typer.Argument(help="As task.base names it.")]) -> None:
    """Print the digest of a base model, for `accepts.base` in a client's settings."""
    from fedtune.deploy.digest import base_digest

    typer.echo(base_digest(base))


@app.command()
def trainer(settings: Annotated[Path, typer.Argument(help="The client's own TOML file.")]) -> None:
    """Hold a client's data and base and train when its SuperNode is asked to. Runs until ended."""
    from fedtune.deploy.serving import serve
    from fedtune.deploy.settings import load_settings

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("fedtune").setLevel(logging.INFO)
    serve(load_settings(settings))
