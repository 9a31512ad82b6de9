"""`fedtune`: its commands, exit codes and output.

Results go to standard output, progress and messages to standard error. Exit code 0 on success, 2
on a bad scenario or argument with one line, 1 on a failed run, 130 on Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import click
import typer

from fedtune import __version__
from fedtune.cli import deploying
from fedtune.cli.auditing import audit
from fedtune.cli.comparing import compare, report
from fedtune.cli.ending import show, told
from fedtune.cli.options import Interrupted, Json, SetOption
from fedtune.cli.printing import print_json
from fedtune.errors import FedtuneError, ScenarioError
from fedtune.scenario import Scenario, load_scenario

app = typer.Typer(
    name="fedtune",
    help="Federated fine-tuning of low-rank adapters.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def run(
    scenario: Annotated[
        str | None, typer.Argument(help="A TOML file, or a name of `fedtune list scenarios`.")
    ] = None,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="The run directory to make.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with the run in this directory.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a scenario, or go on with a run."""
    if (scenario is None) == (resume is None):
        raise ScenarioError("give a SCENARIO or --resume DIR, one of the two")
    if resume is not None and out is not None:
        raise ScenarioError("--out: a resumed run stays in its own directory; leave it out")
    settled = None if scenario is None else load_scenario(scenario, set_ or [])
    if not as_json:
        typer.echo(f"preparing {scenario or resume} ...", err=True)
    from fedtune.runs import api
    from fedtune.runs.progress import ConsoleObserver

    observer = ConsoleObserver(quiet=as_json)
    path = resume or out or api.new_path(Path(scenario or "run").stem)
    with told("fedtune run", path, observer):
        if settled is not None:
            directory = api.run(settled, out=path, observer=observer)
        else:
            directory = api.resume(path, set_ or [], observer)
    show(directory, observer, as_json)


@app.command()
def plan(
    scenario: Annotated[str, typer.Argument(help="A TOML file, or a name.")],
    set_: SetOption = None,
    as_json: Json = False,
) -> None:
    """Show what a run will cost before anything is trained: bytes, memory, time."""
    settled = load_scenario(scenario, set_ or [])
    if not as_json:
        typer.echo(f"preparing {scenario} ...", err=True)
    from fedtune.cli.planning import describe
    from fedtune.runs.plan import plan as estimate

    found = estimate(settled)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo("\n".join(f"{name:<12} {text}" for name, text in describe(found)))


app.command()(compare)
app.command()(report)
app.command()(audit)
app.add_typer(deploying.app)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path | None, typer.Option(help="Where to; by default DIR/export.")] = None,
    form: Annotated[
        str, typer.Option("--format", help="adapter, merged (a Transformers folder), or both.")
    ] = "both",
    rank: Annotated[
        int | None, typer.Option(help="Write the best adapter of this rank, and what it loses.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Load what was written and compare its outputs with the run's.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Write a run's result as a PEFT adapter and as merged weights."""
    from fedtune.runs.directory import RunDirectory
    from fedtune.runs.export import export as write
    from fedtune.runs.export import shortened

    if rank is not None:
        folder = (out or directory / "export") / "adapter"
        try:
            error = shortened(RunDirectory.open(directory), folder, rank, check)
        except OSError as fault:
            raise ScenarioError(f"export of {str(directory)!r}: {fault}") from None
        if as_json:
            print_json({"adapter": str(folder), "error": error})
        else:
            typer.echo(f"{folder}\nlargest relative error of a layer: {error:.2%}")
        return
    written = write(RunDirectory.open(directory), out or directory / "export", form, check)
    if as_json:
        print_json({folder.name: str(folder) for folder in written})
    else:
        typer.echo("\n".join(str(folder) for folder in written))


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="strategies, adapters, rules, attacks, tasks or scenarios.")
    ] = "scenarios",
    as_json: Json = False,
) -> None:
    """List what a scenario can name."""
    from fedtune.cli.listing import LISTS

    if what not in LISTS:
        raise ScenarioError(f"list {what!r}: allowed: {', '.join(LISTS)}")
    found = LISTS[what]()
    if as_json:
        print_json(found)
        return
    width = max(map(len, found), default=0)
    typer.echo("\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in found.items()))


@app.command()
def schema(as_json: Json = True) -> None:
    """Print the scenario's JSON Schema, for editors and tools."""
    print_json(Scenario.model_json_schema())


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show versions, devices, and what is missing for what."""
    from fedtune.cli.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
        return
    for title, members in found.items():
        typer.echo(title)
        for name, text in members.items():
            typer.echo(f"  {name:<16} {text}")


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"fedtune {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The console script; every mistake ends in one line."""
    try:
        code = app(standalone_mode=False)
    except ScenarioError as error:
        _fail(str(error), 2)
    except (Interrupted, click.exceptions.Abort, KeyboardInterrupt) as error:
        _fail(str(error) or "interrupted", 130)
    except FedtuneError as error:
        _fail(str(error), 1)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str, code: int) -> None:
    line = " ".join(text.split())
    typer.echo(f"fedtune: {line}", err=True)
    sys.exit(code)
