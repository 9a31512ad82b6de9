"""`fedtune audit`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fedtune.cli.options import Json, SetOption
from fedtune.cli.printing import print_json
from fedtune.console import STDERR
from fedtune.errors import RunError, ScenarioError
from fedtune.scenario import load_scenario

if TYPE_CHECKING:
    from fedtune.audit.run import Audit

FEWEST = 20


def audit(
    scenario: Annotated[str, typer.Argument(help="A TOML file, or a name.")],
    set_: SetOption = None,
    canaries: Annotated[int, typer.Option(help="Examples, or clients, to plant.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the canaries.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where to; by default under runs/.")] = None,
    as_json: Json = False,
) -> None:
    """Measure how much a run leaks, against what it promises. Ends with 1 if it leaks more."""
    if canaries < FEWEST:
        raise ScenarioError(f"--canaries = {canaries}: allowed: at least {FEWEST}")
    settled = load_scenario(scenario, set_ or [])
    path = out or Path("runs") / f"audit-{Path(scenario).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    if path.exists() and any(path.iterdir()):
        raise ScenarioError(f"--out = {str(path)!r}: is there and not empty")
    if not as_json:
        typer.echo(f"auditing {scenario} with {canaries} canaries ...", err=True)
    from fedtune.audit.run import audit as look
    from fedtune.files import write_json
    from fedtune.reporting.figure import save_figure
    from fedtune.reporting.roc import draw_roc

    with Progress(console=STDERR, disable=as_json, transient=True) as progress:
        tasks = {}

        def step(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        found = look(settled, (), canaries, seed, step)
    told = found.to_dict()
    write_json(path / "audit.json", told)
    scores = {attack.name: attack.scores for attack in found.attacks}
    scores["without noise"] = found.control.scores
    save_figure(draw_roc(scores, found.included, found.promised, found.delta), path / "roc.png")
    if as_json:
        print_json({"directory": str(path), **told})
    else:
        _show(found, path)
    if found.broken:
        raise RunError(found.verdict)


def _show(found: Audit, path: Path) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("adversary", "ε at least", "right guesses", "AUC"):
        table.add_column(heading, justify="left" if heading == "adversary" else "right")
    rows = [*found.attacks, found.control]
    for attack in rows:
        name = attack.name if attack is not found.control else f"{attack.name}, without noise"
        bound = attack.bound
        table.add_row(
            name, f"{bound.epsilon:.2f}", f"{bound.correct} of {bound.guesses}", f"{bound.auc:.3f}"
        )
    console = Console(highlight=False)
    console.print(table)
    if found.tokens is not None:
        console.print(f"tokens of a client's texts, from one upload: AUC {found.tokens:.3f}")
    console.print(found.verdict, markup=False, soft_wrap=True)
    console.print(f"curves: {path / 'roc.png'}", markup=False, soft_wrap=True)
