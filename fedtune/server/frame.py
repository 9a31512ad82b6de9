"""Before round 1: B, A and the first R of LoRA-SB from a gradient of the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedtune.adapters.factors import first_step, frame_of, frame_of_sketch, range_of
from fedtune.adapters.layout import A, B, R, Tensors
from fedtune.apps.opening import (
    DENSE,
    EXAMPLES,
    OPENING,
    PART,
    PROJECT,
    SEED,
    SKETCH,
    SPARE,
    WIDTH,
)
from fedtune.errors import RunError
from fedtune.grids.arrays import records, to_record, to_tensors
from fedtune.grids.directory import directory_of
from fedtune.grids.replies import sift
from fedtune.participation import Participation


@dataclass
class Opening:
    """Where the frame comes from.

    Attributes:
        source: one of `adapter.init`.
        shapes: (d_out, d_in) of each adapted layer, by name.
        size: of the step that the first R makes.
        examples: of a client that its gradient is over, at most; of the server for `public`.
        seed: of the run.
        gradient: the server's own, for `public` and `pooled`; None: clients are asked.
        clients: whose examples it is over: those that are asked, set when they are, or are pooled.
        answered: of those that were asked, who answered every time in a way that can be used.
    """

    source: str
    shapes: dict[str, tuple[int, int]]
    size: float
    examples: int
    seed: int
    gradient: Callable[[], Tensors] | None = None
    clients: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)

    def choose(self, everyone: Sequence[int], taking_part: Participation) -> None:
        """Ask the clients of one draw, or all where it draws nobody."""
        self.clients = taking_part.draw(everyone, 0) or list(everyone)

    def settle(self, model: Tensors, grid: Grid) -> Tensors:
        """The model with the frame in it.

        Raises:
            RunError: if no client answers.
        """
        self.answered = [] if self.gradient else list(self.clients)
        frames = self._frames(model, grid)
        new = dict(model)
        for layer, parts in frames.items():
            for name, part in zip((B, R, A), parts, strict=True):
                new[layer + name] = part.to(model[layer + name])
        return new

    def numbers(self, rank: int) -> tuple[int, int]:
        """How many numbers a client is sent, and sends."""
        if self.source == "client-dense":
            return 0, sum(rows * columns for rows, columns in self.shapes.values())
        if self.source != "client-sketch":
            return 0, 0
        width = self._widths(rank)
        down = sum(rows * width[name] for name, (rows, _) in self.shapes.items())
        return down, down + sum(columns * width[n] for n, (_, columns) in self.shapes.items())

    def _frames(self, model: Tensors, grid: Grid) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        ranks = {layer: len(model[layer + A]) for layer in self.shapes}
        if self.source != "client-sketch":
            gradients = self.gradient() if self.gradient else self._asked(grid, DENSE, self.shapes)
            return {n: frame_of(first_step(g, self.size), ranks[n]) for n, g in gradients.items()}
        width = self._widths(max(ranks.values()))
        shapes = {n: (rows, width[n]) for n, (rows, _) in self.shapes.items()}
        bases = {n: range_of(y) for n, y in self._asked(grid, SKETCH, shapes).items()}
        shapes = {n: (width[n], columns) for n, (_, columns) in self.shapes.items()}
        projected = self._asked(grid, PROJECT, shapes, bases)
        return {
            n: frame_of_sketch(bases[n], projected[n], ranks[n], self.size) for n in self.shapes
        }

    def _widths(self, rank: int) -> dict[str, int]:
        return {n: min(rank + SPARE, *shape) for n, shape in self.shapes.items()}

    def _asked(
        self,
        grid: Grid,
        part: str,
        shapes: dict[str, tuple[int, int]],
        sent: Tensors | None = None,
    ) -> Tensors:
        """The mean over the clients of what they answer, weighted by their examples."""
        directory = directory_of(grid)
        config: dict[str, Any] = {PART: part, EXAMPLES: self.examples, SEED: self.seed}
        config[WIDTH] = max((shape[1] for shape in shapes.values()), default=0)
        asked = {
            client: Message(
                RecordDict(
                    {
                        "arrays": to_record(sent or {}),
                        "config": ConfigRecord({**config, "server-round": 0}),
                    }
                ),
                directory.node(client),
                OPENING,
            )
            for client in self.clients
        }
        replies = list(grid.send_and_receive(asked.values()))
        like = {name: torch.zeros(shape) for name, shape in shapes.items()}
        found = sift(replies, asked, directory, like, "num-examples")
        good = found.good
        if not good:
            reasons = {**found.failed, **found.rejected}
            said = next((f"; client {c}: {why}" for c, why in reasons.items()), "")
            raise RunError(f"adapter.init = {self.source!r}: no client sent a gradient{said}")
        came_from = {client for client, _ in good}
        self.answered = [client for client in self.answered if client in came_from]
        counts = [float(records(content, MetricRecord)[0]["num-examples"]) for _, content in good]  # type: ignore[arg-type]
        came = [to_tensors(records(content, ArrayRecord)[0]) for _, content in good]
        return {
            name: sum(n * one[name] for n, one in zip(counts, came, strict=True)) / sum(counts)  # type: ignore[misc]
            for name in shapes
        }
