"""Comparisons and reports from Python: `fedtune.compare("quickstart", {...}, seeds=5)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

from fedtune.comparison.directory import GRID, SETTINGS, ComparisonDirectory
from fedtune.comparison.execute import Execution
from fedtune.comparison.observing import GridObserver
from fedtune.comparison.progress import ConsoleGrid
from fedtune.comparison.record import comparison_record, run_record
from fedtune.errors import RunError, ScenarioError
from fedtune.files import write_atomically, write_json
from fedtune.reporting.figure import save_figure
from fedtune.reporting.page import failed, html, page_latex, page_markdown
from fedtune.reporting.plots import pictures
from fedtune.reporting.tables import cells_csv
from fedtune.runs.directory import RunDirectory
from fedtune.runs.settling import with_absolute_paths
from fedtune.scenario import Scenario, load_scenario
from fedtune.scenario.compare import CompareSection
from fedtune.scenario.loading import Overrides, validate

PAGE = "report.html"
Axes = Mapping[str, Sequence[Any]]


def compare(
    scenario: str | Path | Scenario,
    over: Axes | None = None,
    overrides: Overrides = (),
    out: str | Path | None = None,
    observer: GridObserver | None = None,
    name: str | None = None,
    command: str | None = None,
    **settings: Any,
) -> ComparisonDirectory:
    """Train every combination of `over` under every seed, and report.

    What is done already in `out` is not trained again: an interrupted comparison goes on where it
    stopped, and a further strategy or seed costs only what is new.

    Args:
        scenario: a path, the name of a shipped scenario, or a `Scenario`; its `[compare]` holds
            defaults of all that follows.
        over: dotted keys to the values that are compared.
        overrides: for all of them, as in `run`.
        out: the comparison's directory; by default `runs/compare/NAME`.
        observer: shows it while it goes on.
        name: its title; by default the scenario's.
        command: stands in the report as the way to repeat it.
        settings: `seeds`, `tune`, `tune_seeds`, `validation`, `budget`, `reference`, `metric`,
            `target`: keys of `[compare]`.

    Returns:
        The directory: `.record`, `.frame()`, and files beside.

    Raises:
        ScenarioError: before anything is trained.
        RunError: at the end, if a run failed; the others are kept and reported.
    """
    file = Path("scenario" if isinstance(scenario, Scenario) else scenario)
    given = {"over": over, **settings}
    base = with_settings(load_scenario(scenario, overrides), given)
    directory = ComparisonDirectory(out or default_directory(file))
    command = command or f"fedtune compare {SETTINGS}"
    return _go(base, directory, observer, name or file.stem, command)


def default_directory(scenario: str | Path) -> Path:
    """`runs/compare/NAME`, by the name of a shipped scenario or the stem of a file."""
    file = Path(scenario)
    name = Path(file.stem) if file.suffix == ".toml" or file.is_absolute() else file
    return Path("runs") / "compare" / name


def resume_comparison(
    path: str | Path, observer: GridObserver | None = None
) -> ComparisonDirectory:
    """Go on with a comparison that was stopped, by its own settings.

    Raises:
        ScenarioError: if it is none.
        RunError: as `compare`.
    """
    directory = ComparisonDirectory.open(Path(path))
    known = directory.grid if (directory.path / GRID).exists() else {}
    name = known.get("name", directory.path.resolve().name)
    command = known.get("command", f"fedtune compare {SETTINGS}")
    return _go(directory.scenario, directory, observer, name, command)


def with_settings(scenario: Scenario, given: Mapping[str, Any]) -> Scenario:
    """A scenario whose `[compare]` is overlaid by what is given; axes are added key by key.

    Raises:
        ScenarioError: for a setting that is wrong.
    """
    raw = scenario.model_dump(exclude_none=True)
    section = raw.setdefault("compare", {})
    for key, value in given.items():
        if value is None:
            continue
        if key not in CompareSection.model_fields:
            allowed = ", ".join(CompareSection.model_fields)
            raise ScenarioError(f"compare.{key}: unknown key; allowed: {allowed}")
        merged = key in ("over", "tune")
        section[key] = {**section.get(key, {}), **value} if merged else value
    return validate(raw)


def report(path: str | Path, with_latex: bool = False) -> list[Path]:
    """Write tables, pictures and the page of a run or a comparison, finished or not.

    Args:
        path: a run directory or a comparison's.
        with_latex: write the tables in LaTeX too.

    Returns:
        The files, the page last.

    Raises:
        ScenarioError: if it is neither.
    """
    folder = Path(path)
    if (folder / SETTINGS).is_file():
        directory = ComparisonDirectory(folder)
        record, stem = comparison_record(directory), "comparison"
        directory.write_record(record)
    else:
        record, stem = run_record(RunDirectory.open(folder)), "report"
        write_json(folder / f"{stem}.json", record)
    return [folder / f"{stem}.json", *_write(record, folder, stem, with_latex)]


def frame(path: str | Path) -> pd.DataFrame:
    """A run as a table of its rounds, or a comparison as a table of its cells.

    `fedtune.frame("runs/first")["eval/accuracy"].plot()`;
    `fedtune.frame("runs/compare/quickstart").groupby("family")["final"].mean()`.

    Raises:
        ScenarioError: if it is neither.
    """
    if (Path(path) / SETTINGS).is_file():
        return ComparisonDirectory(path).frame()
    return RunDirectory.open(Path(path)).frame()


def _go(
    base: Scenario,
    directory: ComparisonDirectory,
    observer: GridObserver | None,
    name: str,
    command: str,
) -> ComparisonDirectory:
    execution = Execution(base, directory, observer or ConsoleGrid(quiet=True), name, command)
    directory.check_free()
    with closing(execution.library):
        execution.check()
        with directory.locked():
            directory.write_settings(with_absolute_paths(base))
            execution.train()
    report(directory.path)
    if lost := failed(directory.record):
        raise RunError(f"{len(lost)} of the runs failed; {lost[0]}")
    return directory


def _write(record: Mapping[str, Any], folder: Path, stem: str, with_latex: bool) -> list[Path]:
    texts = {f"{stem}.csv": cells_csv(record), f"{stem}.md": page_markdown(record)}
    if with_latex:
        texts[f"{stem}.tex"] = page_latex(record)
    drawn = pictures(record)
    texts[PAGE] = html(record, drawn)
    written = []
    for name, (figure, _) in drawn.items():
        for form in ("png", "svg"):
            written.append(folder / "plots" / f"{name}.{form}")
            save_figure(figure, written[-1])
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return [*written, *(folder / name for name in texts)]
