"""A scenario's task: base model, examples, and which client holds which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedtune.adapters.wrap import PretrainedBase
from fedtune.errors import ScenarioError
from fedtune.scenario.schema import Scenario
from fedtune.tasks.base import Classification, Data, Objective, Rows
from fedtune.tasks.clients import ClientRows, DealtRows, EvenRows
from fedtune.tasks.images import load_image_base, load_image_splits, process
from fedtune.tasks.partition import partition
from fedtune.tasks.synthetic import CLASSES, SyntheticImages

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
        classes: names of the classes.
    """

    base: PretrainedBase
    objective: Objective
    train: Data
    test: Data
    test_rows: Rows
    clients: ClientRows
    classes: list[str]


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
    if scenario.task.data == "builtin:synthetic":
        return _synthetic(scenario, device, dtype)
    splits = load_image_splits(scenario.task)
    clients = scenario.clients
    if parts is None:
        parts = partition(splits.train[1], clients.partition, clients.count, scenario.run.seed)
    base = load_image_base(scenario.task, splits.classes)
    channels = int(getattr(base.model.config, "num_channels", 3))
    train, test = (
        process(base.source, channels, *split).to(device, dtype)
        for split in (splits.train, splits.test)
    )
    rows = np.arange(len(test))
    return Task(base, Classification(), train, test, rows, DealtRows(parts), splits.classes)


def _synthetic(scenario: Scenario, device: torch.device, dtype: torch.dtype) -> Task:
    if scenario.clients.partition.kind != "iid":
        raise ScenarioError(
            f"clients.partition.kind = {scenario.clients.partition.kind!r}: builtin:synthetic "
            "makes each client's examples; allowed: iid"
        )
    classes = [str(c) for c in range(CLASSES)]
    base = load_image_base(scenario.task, classes)
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
