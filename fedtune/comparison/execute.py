"""Training what a comparison lacks: its searches first, then every family under every seed."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import torch

from fedtune.cohort.sizing import forget_peak_memory
from fedtune.comparison.budget import spent, within
from fedtune.comparison.cells import Cell, CellStore
from fedtune.comparison.claims import check_claim
from fedtune.comparison.directory import ComparisonDirectory
from fedtune.comparison.grid import Family, expand, families, label_of, settled
from fedtune.comparison.measure import default_metric
from fedtune.comparison.observing import GridObserver
from fedtune.comparison.rows import Row, evaluated, seed_by_seed
from fedtune.comparison.tuning import Trial, candidates, choose, score, trial_cells, worst_of
from fedtune.errors import FedtuneError, Incompatible, ScenarioError
from fedtune.runs.build import build
from fedtune.runs.engines import pick_device
from fedtune.runs.settling import settle_rounds
from fedtune.scenario import Scenario, dump_scenario
from fedtune.scenario.compare import CompareSection
from fedtune.tasks.library import Library
from fedtune.version import versions


class Execution:
    """One pass over the grid of a comparison; what is done already is not trained again.

    Args:
        base: the scenario, with what is compared under `compare`.
        directory: of the comparison.
        observer: shows it.
        name: what it is called in the report.
        command: that a reader can repeat it with.
    """

    def __init__(
        self,
        base: Scenario,
        directory: ComparisonDirectory,
        observer: GridObserver,
        name: str,
        command: str,
    ) -> None:
        self.base, self.directory, self.observer = base, directory, observer
        self.name, self.command = name, command
        self.section = base.compare or CompareSection()
        self.store, self.library = CellStore(directory.path), Library()
        self.axes = expand(self.section.axes)
        for key, values in self.section.tune_at.items():
            if unknown := [value for value in values if value not in self.axes[key]]:
                raise ScenarioError(f"tune_at: {key} = {unknown[0]!r}: not one of its values")
        self.rows = [Row(family) for family in families(base, self.axes)]
        if self.section.claim is not None:
            check_claim(self.section.claim, [row.family.over for row in self.possible])
        self.problems: dict[str, str] = {}
        self.chosen_threads: list[int] = []  # by kind of run; all cells share the most
        self.refusals: dict[str, str | None] = {}
        self.metric = self.section.metric
        self.amount = self.section.budget.amount

    @property
    def possible(self) -> list[Row]:
        """The rows that can be trained."""
        return [row for row in self.rows if row.family.scenario is not None and not row.problem]

    def check(self) -> None:
        """Build one run of each kind and plan all work, so that what cannot be had is known before
        any is trained.

        Raises:
            ScenarioError: for whatever would stop a run before it trains.
        """
        self.library.threads = self.directory.threads
        for row in self.possible:
            assert row.family.scenario is not None
            row.problem = self._refused(row.family.scenario)
        self.library.threads = max(self.chosen_threads, default=None)
        self.reference = self._reference()
        budget = self.section.budget
        if budget.kind != "rounds" and self.amount is None:
            assert self.reference.family.scenario is not None
            self.amount = spent(self.reference.family.scenario, budget.kind, self.library)
        for row in self.possible:
            if self.section.tune and self._searched(row.family):
                row.trials = self._trials(row.family)
        for group in self._groups():
            cells = [cell for row in group for t in row.trials for cell in t.cells]
            if all(self.store.status(cell) == "done" for cell in cells):
                self._settle(group)

    def train(self) -> None:
        """Train what is missing."""
        self.save()
        self._plan()
        self._train([cell for row in self.possible for t in row.trials for cell in t.cells])
        for group in self._groups():
            if not group[0].cells:
                self._settle(group)
        self.save()
        self._train(seed_by_seed(self.possible))
        self.save()

    def save(self) -> None:
        """Write the grid as it stands."""
        self.directory.write_grid(
            {
                "name": self.name,
                "command": self.command,
                "scenario": dump_scenario(self.base),
                "compare": self.section.model_dump(),
                "reference": self.reference.family.label,
                "axes": self.axes,
                "metric": self.metric,
                "amount": self.amount,
                "versions": versions(),
                "device": pick_device(self.base.engine.device),
                "threads": self.library.threads or torch.get_num_threads(),
                "families": [self._row(row) for row in self.rows],
            }
        )

    def _refused(self, scenario: Scenario) -> str | None:
        """Why a scenario's parts cannot go together, if they cannot; built once a kind."""
        key = scenario.model_dump_json(include={"task", "clients", "adapter", "engine"})
        if key not in self.refusals:
            self.refusals[key] = None
            try:
                federation = build(scenario, library=self.library)
                if scenario.engine.threads == "auto":
                    self.chosen_threads.append(federation.engine.resolved.threads)
                with closing(federation.engine):
                    self._check_metric(evaluated(federation))
            except Incompatible as error:
                self.refusals[key] = str(error)
        return self.refusals[key]

    def _check_metric(self, names: list[str]) -> None:
        """Refuse a metric that evaluations do not give."""
        if self.section.tune:
            names = [name for name in names if name != "exact_match"]
        if self.metric is None:
            self.metric = default_metric(names)
        if self.metric not in names:
            searched = " (of a search, on validation data)" if self.section.tune else ""
            raise ScenarioError(f"--metric {self.metric!r}: allowed{searched}: {', '.join(names)}")

    def _reference(self) -> Row:
        wanted = self.section.reference
        for row in self.rows:
            if all(row.family.over.get(key) == value for key, value in wanted.items()):
                if row.family.scenario is not None and not row.problem:
                    return row
                if wanted:
                    reason = row.family.reason or row.problem
                    raise ScenarioError(f"--reference {row.family.label}: cannot be: {reason}")
        if not self.possible:
            reason = self.rows[0].family.reason or self.rows[0].problem
            raise ScenarioError(f"--over: no combination is possible: {reason}")
        labels = ", ".join(row.family.label for row in self.rows)
        raise ScenarioError(f"--reference {wanted}: is none of the combinations ({labels})")

    def _afford(self, scenario: Scenario) -> Scenario:
        """The scenario with the rounds of its budget, and with what follows from them settled."""
        budget = self.section.budget
        if self.amount is not None and budget.kind == "rounds":
            run = scenario.run.model_copy(update={"rounds": self.amount})
            scenario = scenario.model_copy(update={"run": run})
        elif self.amount is not None:
            scenario = within(scenario, budget, self.amount, self.library)
        return settle_rounds(scenario)

    def _trials(self, family: Family) -> list[Trial]:
        seeds, found = self.section.tune_seeds, []
        for values, scenario in candidates(self.base, family, self.section):
            if self._refused(scenario) is None:
                cells = trial_cells(family, values, self._afford(scenario), seeds)
                found.append(Trial(values, cells))
        return found

    def _searched(self, family: Family) -> bool:
        return all(family.over[key] in values for key, values in self.section.tune_at.items())

    def _groups(self) -> list[list[Row]]:
        """Rows that share one choice: those that differ only in axes of `worst_over`."""
        found: dict[str, list[Row]] = {}
        for row in self.possible:
            free = {k: v for k, v in row.family.over.items() if k not in self.section.worst_over}
            found.setdefault(label_of(free), []).append(row)
        return list(found.values())

    def _settle(self, group: list[Row]) -> None:
        """Choose the values of rows that share them, and make their cells."""
        assert self.metric is not None
        if self.section.tune:
            searched = [row for row in group if self._searched(row.family)]
            for row in searched:
                row.scores = [score(trial, self.store, self.metric) for trial in row.trials]
            values, worst = worst_of([(r.trials, r.scores) for r in searched], self.metric)
            best = choose(worst, self.metric)
            if best is None:
                trials = [trial for row in searched for trial in row.trials]
                lost = [self.problems.get(c.digest) for trial in trials for c in trial.cells]
                reason = next(filter(None, lost), "no candidate is possible, or all diverged")
                for row in group:
                    row.problem = f"its search gave nothing: {reason}"
                return
            for row in group:
                row.chosen = values[best]
        for row in group:
            self._make_cells(row)

    def _make_cells(self, row: Row) -> None:
        base = settled(self.base, {**row.family.over, **row.chosen})
        for seed in range(base.run.seed, base.run.seed + self.section.seeds):
            run = base.run.model_copy(update={"seed": seed})
            scenario = self._afford(base.model_copy(update={"run": run}))
            row.cells.append(Cell(f"{row.family.label} seed {seed}", scenario))

    def _plan(self) -> None:
        """Tell the observer how much there is; runs that a search must settle first are missing."""
        known = [cell for row in self.possible for t in row.trials for cell in t.cells]
        known += [cell for row in self.possible for cell in row.cells]
        waiting = [cell for cell in known if self.store.status(cell) != "done"]
        later = [row.family.scenario for row in self.possible if not row.cells]
        cells = len(known) + self.section.seeds * len(later)
        rounds = sum(cell.scenario.run.rounds for cell in waiting)
        rounds += self.section.seeds * sum(s.run.rounds for s in later if s is not None)
        self.observer.planned(cells, len(known) - len(waiting), rounds)

    def _train(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            done = self.store.status(cell) == "done"
            self.observer.began(cell)
            problem = None if done else self._train_one(cell)
            self.observer.ended(cell, problem)
            if problem:
                self.save()

    def _train_one(self, cell: Cell) -> str | None:
        gc.collect()
        forget_peak_memory(torch.device(pick_device(cell.scenario.engine.device)))
        try:
            self.store.train(cell, self.library, self.observer)
        except Exception as error:  # whatever one cell raises, the others go on
            text = (
                str(error)
                if isinstance(error, FedtuneError)
                else f"{type(error).__name__}: {error}"
            )
            self.problems[cell.digest] = " ".join(text.split())
            return self.problems[cell.digest]
        return None

    def _row(self, row: Row) -> dict[str, Any]:
        scenario = row.family.scenario
        scores = row.scores or [None] * len(row.trials)
        return {
            "label": row.family.label,
            "over": row.family.over,
            "strategy": scenario.strategy.name if scenario else None,
            "weights": row.family.weights,
            "reason": row.family.reason or row.problem,
            "chosen": row.chosen,
            "trials": [
                {"values": trial.values, "score": found, "cells": [*map(self._cell, trial.cells)]}
                for trial, found in zip(row.trials, scores, strict=True)
            ],
            "cells": [*map(self._cell, row.cells)],
        }

    def _cell(self, cell: Cell) -> dict[str, Any]:
        path = self.store.directory(cell).path.relative_to(self.directory.path)
        return {
            "seed": cell.scenario.run.seed,
            "rounds": cell.scenario.run.rounds,
            "directory": str(path),
            "problem": self.problems.get(cell.digest),
        }
