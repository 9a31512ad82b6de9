"""A scenario's task: base model, examples, and which client holds which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from datasets import disable_progress_bars

from fedtune.adapters.wrap import PretrainedBase
from fedtune.errors import ScenarioError
from fedtune.randomness import generator
from fedtune.scenario.schema import Scenario
from fedtune.scenario.task import CLIENTS, SQUARES, TaskSection
from fedtune.tasks.base import Classification, Data, Objective, Rows, Table
from fedtune.tasks.bases import load_base, names_of_base
from fedtune.tasks.clients import AbsentRows, ClientRows, DealtRows, EvenRows, held_of_all
from fedtune.tasks.examples import Examples, dealt_by, of_no_client
from fedtune.tasks.generation import ExactMatch
from fedtune.tasks.heads import in_order_of
from fedtune.tasks.images import load_images
from fedtune.tasks.language import CausalLM, load_language
from fedtune.tasks.library import Library
from fedtune.tasks.partition import check_keys, partition
from fedtune.tasks.shapes import load_shapes
from fedtune.tasks.sources import contents
from fedtune.tasks.squares import SquaredError, least_squares, linear_base
from fedtune.tasks.synthetic import CLASSES, SyntheticImages
from fedtune.tasks.text import load_text

SYNTHETIC_TEST_ROWS = 512
Parts = list[Rows] | Callable[[int], list[Rows]] | None


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
        server_rows: rows of `train` that the server holds.
        notes: lines that the user should see.
        left_out: what was left out of the data, as the end of a sentence, and how many of them.
    """

    base: PretrainedBase
    objective: Objective
    train: Data
    test: Data
    test_rows: Rows
    clients: ClientRows
    classes: list[str]
    exact_match: ExactMatch | None = None
    server_rows: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


LOADERS: dict[str, Callable[[TaskSection], Examples]] = {
    "image-classification": load_images,
    "text-classification": load_text,
    "causal-lm": load_language,
}


def load_task(
    scenario: Scenario,
    device: torch.device,
    dtype: torch.dtype,
    parts: Parts = None,
    library: Library | None = None,
) -> Task:
    """Load model and data and deal the examples.

    Args:
        parts: the rows of each client, where they were dealt before (a resumed run), or what deals
            so many rows.
        library: lends model and data that another run of this process loaded.

    Raises:
        ScenarioError: for a model, data set or partition that cannot be had.
    """
    check_keys(scenario.clients.partition)
    disable_progress_bars()  # type: ignore[no-untyped-call]
    if scenario.task.data in MADE:
        if scenario.task.server_examples:
            raise ScenarioError(
                f"task.server_examples = {scenario.task.server_examples}: {scenario.task.data} "
                "gives the server none"
            )
        if scenario.clients.partition.kind != "iid":
            raise ScenarioError(
                f"clients.partition.kind = {scenario.clients.partition.kind!r}: "
                f"{scenario.task.data} makes each client's examples; allowed: iid"
            )
        return MADE[scenario.task.data](scenario, device, dtype)
    task = scenario.task
    if task.data == CLIENTS and task.test is None:
        return _shapes_alone(scenario)
    examples = (library or Library()).borrow(
        (task.model_dump_json(exclude={"validation", "head"}), contents(task)),
        lambda: LOADERS[task.kind](task),
        device,
        dtype,
        scenario.adapter.modules_to_save or (),
    )
    if task.data == CLIENTS:
        return _without_clients_data(examples, scenario.clients.count)
    section, total, by = scenario.clients.partition, len(examples.train), None
    if callable(parts):
        parts = parts(total)
    if parts is None or section.kind == "natural":
        by = dealt_by(examples, section)
    if parts is None:
        assert by is not None
        parts = partition(by, section, scenario.clients.count, scenario.run.seed)
    left = of_no_client(by, section, total - sum(map(len, parts)))
    own = _server_rows(parts, task.server_examples, scenario.run.seed)
    loaded = Task(
        base=examples.base,
        objective=examples.objective,
        train=examples.train,
        test=examples.test,
        test_rows=np.arange(len(examples.test)),
        clients=DealtRows(parts, without=own),
        classes=examples.classes,
        exact_match=examples.exact_match,
        server_rows=own,
        notes=[*examples.notes, *(f"data: {n} of {total} {what}" for what, n in left.items())],
        left_out={**examples.left_out, **left},
    )
    clients_own = [np.setdiff1d(part, own, assume_unique=True) for part in parts]
    return (
        loaded if task.validation is None else _on_validation(loaded, scenario, parts, clients_own)
    )


def _shapes_alone(scenario: Scenario) -> Task:
    """What a server knows that has neither examples nor the base's weights."""
    task = scenario.task
    classes = in_order_of(names_of_base(task), task.labels or [], ordered=True)
    base, nothing = load_shapes(task, classes), Table({}, torch.empty(0, dtype=torch.long))
    return Task(
        base=base,
        objective=CausalLM() if task.kind == "causal-lm" else Classification(),
        train=nothing,
        test=nothing,
        test_rows=np.empty(0, dtype=np.int64),
        clients=AbsentRows(scenario.clients.count),
        classes=classes,
        notes=[
            "data: each client brings its own; without task.test nothing is evaluated here",
            *base.notes,
        ],
    )


def _without_clients_data(examples: Examples, count: int) -> Task:
    return Task(
        base=examples.base,
        objective=examples.objective,
        train=examples.test,
        test=examples.test,
        test_rows=np.arange(len(examples.test)),
        clients=AbsentRows(count),
        classes=examples.classes,
        exact_match=examples.exact_match,
        notes=[
            "data: each client brings its own; the server evaluates on task.test",
            *examples.notes,
        ],
        left_out=examples.left_out,
    )


def _server_rows(parts: list[Rows], count: int, seed: int) -> Rows:
    """Rows that the server takes from all clients alike, sorted."""
    dealt = np.concatenate(parts)
    if count >= len(dealt):
        raise ScenarioError(
            f"task.server_examples = {count}: there are {len(dealt)} rows, and clients need some"
        )
    return np.sort(generator("server", seed).permutation(dealt)[:count])


def _on_validation(task: Task, scenario: Scenario, parts: list[Rows], left: list[Rows]) -> Task:
    """The task without its test data: rows that each client holds out are evaluated instead.

    A local head is evaluated by its client, which holds rows out of those that are left here.
    """
    assert scenario.task.validation is not None
    if scenario.task.head == "local":
        tested = held_of_all(left, scenario.clients.held_share, scenario.run.seed)
        taken = np.union1d(tested, task.server_rows)
        return replace(task, clients=DealtRows(parts, without=taken))
    held = held_of_all(left, scenario.task.validation, scenario.run.seed)
    holding = [rows for rows in left if len(rows)]
    short = sum(len(rows) < 2 for rows in holding)
    alone = len(holding) == 1 < scenario.clients.count  # in a deployment
    if short == len(holding) and not alone:
        raise ScenarioError(
            f"task.validation = {scenario.task.validation}: no client has two examples, one to "
            "train on and one to be evaluated on"
        )
    note = f"data: {short} of {len(holding)} clients have one example and hold out none"
    notes = [*task.notes, *([note] if short else [])]
    clients = DealtRows(parts, without=np.union1d(held, task.server_rows))
    return replace(
        task, test=task.train, test_rows=held, clients=clients, exact_match=None, notes=notes
    )


def _synthetic(scenario: Scenario, device: torch.device, dtype: torch.dtype) -> Task:
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
    count = total + 2 * SYNTHETIC_TEST_ROWS
    make = SyntheticImages(count, shape, scenario.run.seed, device, dtype)
    first = total if scenario.task.validation is None else total + SYNTHETIC_TEST_ROWS
    rows = np.arange(first, first + SYNTHETIC_TEST_ROWS)
    notes = list(base.notes)
    return Task(base, Classification(), make, make, rows, clients, classes, notes=notes)


def _least_squares(scenario: Scenario, device: torch.device, dtype: torch.dtype) -> Task:
    task, clients = scenario.task, EvenRows(scenario.clients.count, scenario.clients.examples)
    rows = len(clients) * clients.examples
    if rows < task.features:
        raise ScenarioError(
            f"clients.examples = {clients.examples}: {len(clients)} clients hold {rows} rows, "
            f"fewer than task.features = {task.features}"
        )
    train, test, power = least_squares(rows, task.features, task.noise, scenario.run.seed)
    train, test = train.to(device, dtype), test.to(device, dtype)
    base, unit_vectors = linear_base(task.features), np.arange(task.features)
    return Task(base, SquaredError(power), train, test, unit_vectors, clients, [])


MADE = {"builtin:synthetic": _synthetic, SQUARES: _least_squares}
