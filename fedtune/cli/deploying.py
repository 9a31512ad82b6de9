"""`fedtune deploy`: certificates, keys, clients, and a federation on this machine."""

from __future__ import annotations

import logging
import signal
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from fedtune.cli.ending import show, told
from fedtune.cli.options import Interrupted, Json, SetOption
from fedtune.errors import ScenarioError
from fedtune.scenario import load_scenario

PAUSE = 0.5
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
    with told("fedtune deploy up", path, observer):
        if settled is not None:
            directory = federation.up(settled, path, observer)
        else:
            directory = federation.go_on(path, observer, set_ or [])
    show(directory, observer, as_json)


@app.command()
def run(
    nodes: Annotated[Path, typer.Option(help="Registered clients, of `fedtune deploy register`.")],
    scenario: Annotated[str | None, typer.Argument(help="A TOML file, or a name.")] = None,
    superlink: Annotated[
        str, typer.Option(help="Name of the connection in Flower's config.toml.")
    ] = "local",
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="The run directory to make.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with the deployed run in DIR.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a scenario on a SuperLink of this machine, with the clients that are registered there."""
    if (scenario is None) == (resume is None):
        raise ScenarioError("give a SCENARIO or --resume DIR, one of the two")
    from fedtune.deploy import runs
    from fedtune.runs import api
    from fedtune.runs.progress import ConsoleObserver

    known = runs.read_nodes(nodes)
    path = resume or out or api.new_path(f"deploy-{Path(scenario or 'run').stem}")
    if scenario is not None:
        made = load_scenario(scenario, [*(set_ or []), f"clients.count={len(known)}"])
        settled, directory, name = runs.prepared(made, path)
    else:
        directory, name = runs.opened(path, set_ or [])
        settled = directory.scenario
    asked = runs.Asked(settled, directory.path, name, known, resume is not None)
    observer = ConsoleObserver(quiet=as_json)
    ending = told("fedtune deploy run", path, observer)
    with tempfile.TemporaryDirectory(prefix="fedtune-deploy-") as folder, ending:
        directory = runs.run_on(asked, superlink, Path(folder), observer)
    show(directory, observer, as_json)


@app.command()
def register(
    client: Annotated[int, typer.Argument(min=0, help="The client's id.")],
    key: Annotated[Path, typer.Argument(help="Its public key.")],
    nodes: Annotated[Path, typer.Option(help="File of all registered clients.")],
    superlink: Annotated[
        str, typer.Option(help="Name of the connection in Flower's config.toml.")
    ] = "local",
) -> None:
    """Admit a client's key to the SuperLink; only clients with an admitted key can join."""
    from fedtune.deploy.runs import admit

    typer.echo(f"client {client}: node {admit(client, key, superlink, nodes)}")


@app.command()
def client(
    settings: Annotated[Path, typer.Argument(help="The client's own TOML file.")],
    superlink: Annotated[str, typer.Option(help="The server, as HOST:PORT.")],
    authority: Annotated[Path, typer.Option(help="The certificate that vouches for the server.")],
    key: Annotated[Path, typer.Option(help="The client's private key.")],
    home: Annotated[Path, typer.Option(help="Folder of Flower's files and both logs.")],
) -> None:
    """Start a client: its trainer, started anew when it dies, and Flower's SuperNode."""
    from fedtune.deploy.processes import ClientProcesses, Place
    from fedtune.deploy.settings import load_settings

    own = load_settings(settings)
    for name, file in (("--authority", authority), ("--key", key)):
        if not file.is_file():
            raise ScenarioError(f"{name} {str(file)!r}: no such file")
    place = Place(superlink, authority.resolve(), key.resolve())
    one = ClientProcesses(own.client, settings.resolve(), own.socket, place, home.resolve(), {})
    typer.echo(f"client {own.client}: logs in {home}; Ctrl-C ends it", err=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            one.check()
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        raise Interrupted("ended") from None
    finally:
        one.stop()


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
