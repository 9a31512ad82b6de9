"""`fedtune compare` and `fedtune report`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedtune.cli.options import Interrupted, Json, SetOption
from fedtune.cli.printing import print_json
from fedtune.errors import RunError, ScenarioError
from fedtune.scenario import load_scenario

OverOption = Annotated[
    list[str] | None,
    typer.Option(
        "--over", metavar="KEY=V1,V2",
        help="Compare these values; once for each key. strategy.name=all takes every strategy.",
    ),
]  # fmt: skip
TuneOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tune", metavar="KEY=V1,V2", help="Search these for each combination on validation data."
    ),
]


def compare(
    scenario: Annotated[
        str | None, typer.Argument(help="A TOML file, or a name of `fedtune list scenarios`.")
    ] = None,
    over: OverOption = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each; by default 3.")] = None,
    tune: TuneOption = None,
    tune_seeds: Annotated[
        int | None, typer.Option(help="Seeds of that search; by default 1.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="KIND[=N]", help="rounds, bytes_up or client_steps, alike for all."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="What others are tested against; by default the first."
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="What decides; by default accuracy or perplexity.")
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="Value of the metric whose cost is counted.")
    ] = None,
    set_: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Its directory; by default runs/compare/SCENARIO.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with the comparison in it.")
    ] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Write the tables in LaTeX too.")] = False,
    as_json: Json = False,
) -> None:
    """Compare variants of a scenario over seeds, and report; done runs are not trained again."""
    if (scenario is None) == (resume is None):
        raise ScenarioError("give a SCENARIO or --resume DIR, one of the two")
    from fedtune.comparison import api
    from fedtune.comparison.grid import parse_axes
    from fedtune.comparison.progress import ConsoleGrid

    chosen = parse_axes("--reference", reference or [])
    for key, values in chosen.items():
        if len(values) > 1:
            raise ScenarioError(f"--reference {key}: is one value, not {len(values)}")
    first = {key: values[0] for key, values in chosen.items()}
    settings: dict[str, Any] = {
        "over": parse_axes("--over", over or []) or None,
        "tune": parse_axes("--tune", tune or []) or None,
        "seeds": seeds, "tune_seeds": tune_seeds, "budget": _budget(budget),
        "reference": first or None, "metric": metric, "target": target,
    }  # fmt: skip
    if resume is not None and (set_ or out or any(v is not None for v in settings.values())):
        raise ScenarioError(
            "--resume: a comparison goes on by its own settings; to add to it, give the SCENARIO "
            "with the new settings and --out DIR"
        )
    path = resume or out or api.default_directory(scenario or "")
    grid = ConsoleGrid(quiet=as_json)
    go_on = f"what is done is kept; go on with: fedtune compare --resume {shlex.quote(str(path))}"
    try:
        if scenario is not None:
            base = api.with_settings(load_scenario(scenario, set_ or []), settings)
            grid.notice(f"preparing {scenario} ...")
            api.compare(
                base,
                out=path,
                observer=grid,
                name=Path(scenario).stem,
                command=shlex.join(["fedtune", *sys.argv[1:]]),
            )
        else:
            api.resume_comparison(path, grid)
        _show(path, latex, as_json)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {go_on}") from None
    except RunError as error:
        _show(path, latex, as_json)
        raise RunError(f"{error}; {go_on}") from error
    finally:
        grid.close()


def report(
    directory: Annotated[Path, typer.Argument(help="Of a run or a comparison, finished or not.")],
    latex: Annotated[bool, typer.Option("--latex", help="Write the tables in LaTeX too.")] = False,
    as_json: Json = False,
) -> None:
    """Write tables, pictures and one self-contained page of a run or a comparison."""
    from fedtune.comparison.api import report as write

    files = write(directory, with_latex=latex)
    if as_json:
        print_json({"directory": str(directory), "files": [str(file) for file in files]})
    else:
        typer.echo("\n".join(str(file) for file in files))


def _budget(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    kind, equals, amount = text.partition("=")
    if not equals:
        return {"kind": kind}
    try:
        return {"kind": kind, "amount": int(amount)}
    except ValueError:
        raise ScenarioError(f"--budget {text!r}: must be KIND=N with a whole number N") from None


def _show(path: Path, latex: bool, as_json: bool) -> None:
    """What a comparison found, as JSON or in words."""
    from fedtune.comparison.api import report as write
    from fedtune.comparison.directory import ComparisonDirectory

    if latex:
        write(path, with_latex=True)
    record = ComparisonDirectory(path).record
    if as_json:
        print_json({"directory": str(path), **record})
    else:
        typer.echo(_closing(record, path))


def _closing(record: dict[str, Any], path: Path) -> str:
    from fedtune.comparison.api import PAGE
    from fedtune.reporting.tables import plain_text, result_table
    from fedtune.reporting.words import claim, difference_in_words

    lines = [plain_text(result_table(record))]
    lines += [difference_in_words(record, found) for found in record["differences"]]
    if record["claim"]:
        lines += [
            claim(record),
            *(f"  {p['verdict']}: {p['says']}" for p in record["claim"]["parts"]),
        ]
    lines += [f"not possible: {one['label']}: {one['reason']}" for one in record["skipped"]]
    return "\n".join([*lines, f"page:   {path / PAGE}", f"tables: {path / 'comparison.md'}"])
