"""A scenario's task: base model, examples, and which client holds which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import disable_progress_bars

from fedtune.adapters.wrap import PretrainedBase
from fedtune.errors import ScenarioError
from fedtune.scenario.schema import Scenario
from fedtune.scenario.task import TaskSection
from fedtune.tasks.base import Classification, Data, Objective, Rows
from fedtune.tasks.bases import load_base
from fedtune.tasks.clients import ClientRows, DealtRows, EvenRows
from fedtune.tasks.examples import Examples, dealt_by
from fedtune.tasks.generation import ExactMatch
from fedtune.tasks.images import load_images
from fedtune.tasks.language import load_language
from fedtune.tasks.partition import partition
from fedtune.tasks.synthetic import CLASSES, SyntheticImages
from fedtune.tasks.text import load_text

SYNTHETIC_TEST_ROWS = 512


@dataclass(frozen=True)
class Task:
    """What a run learns.

    Attributes:
        base: the model, head included.
        objective: forward pass, losses, scores.
        train: the clients' examples.
        test: the split of the central evaluation.
        test_rows: its rows.
        clients: which rows of `train` each client holds.
        classes: names of the classes; none for causal-lm.
        exact_match: how generations are scored, if they are.
        notes: lines that the user should see.
    """

    base: PretrainedBase
    objective: Objective
    train: Data
    test: Data
    test_rows: Rows
    clients: ClientRows
    classes: list[str]
    exact_match: ExactMatch | None = None
    notes: list[str] = field(default_factory=list)


LOADERS: dict[str, Callable[[TaskSection], Examples]] = {
    "image-classification": load_images,
    "text-classification": load_text,
    "causal-lm": load_language,
}


def load_task(
    scenario: Scenario,
    device: torch.device,
    dtype: torch.dtype,
    parts: list[Rows] | None = None,
) -> Task:
    """Load model and data and deal the examples.

    Args:
        parts: the rows of each client, where they were dealt before (a resumed run).

    Raises:
        ScenarioError: for a model, data set or partition that cannot be had.
    """
    disable_progress_bars()  # type: ignore[no-untyped-call]
    if scenario.task.data == "builtin:synthetic":
        return _synthetic(scenario, device, dtype)
    examples = LOADERS[scenario.task.kind](scenario.task)
    section = scenario.clients.partition
    if parts is None:
        by = dealt_by(examples, section)
        parts = partition(by, section, scenario.clients.count, scenario.run.seed)
    train, test = (split.to(device, dtype) for split in (examples.train, examples.test))
    held = sum(map(len, parts))
    notes = list(examples.notes)
    if held < len(train):
        notes.append(f"data: {len(train) - held} of {len(train)} examples are of no client")
    return Task(
        base=examples.base,
        objective=examples.objective,
        train=train,
        test=test,
        test_rows=np.arange(len(test)),
        clients=DealtRows(parts),
        classes=examples.classes,
        exact_match=examples.exact_match,
        notes=notes,
    )


def _synthetic(scenario: Scenario, device: torch.device, dtype: torch.dtype) -> Task:
    if scenario.clients.partition.kind != "iid":
        raise ScenarioError(
            f"clients.partition.kind = {scenario.clients.partition.kind!r}: builtin:synthetic "
            "makes each client's examples; allowed: iid"
        )
    if scenario.task.kind != "image-classification":
        raise ScenarioError(
            f"task.data = 'builtin:synthetic': makes images, not for {scenario.task.kind}"
        )
    classes = [str(c) for c in range(CLASSES)]
    base = load_base(scenario.task, classes)
    config = base.model.config
    if not isinstance(getattr(config, "image_size", None), int):
        raise ScenarioError(
            f"task.data = 'builtin:synthetic': {scenario.task.base} does not say its image_size"
        )
    side = int(config.image_size)
    shape = (int(getattr(config, "num_channels", 3)), side, side)
    clients = EvenRows(scenario.clients.count, scenario.clients.examples)
    total = len(clients) * clients.examples
    make = SyntheticImages(total + SYNTHETIC_TEST_ROWS, shape, scenario.run.seed, device, dtype)
    rows = np.arange(total, len(make))
    return Task(base, Classification(), make, make, rows, clients, classes)
