"""Every upload on its way, and what it tells of the canaries of the client that sent it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fedtune.adapters.layout import A, Tensors
from fedtune.audit.attacks import decoded, example_gradients, standardised
from fedtune.audit.canaries import Canaries
from fedtune.grids.arrays import records, to_tensors
from fedtune.runs.build import Federation

UPLOADS = "every upload, white box"
DOUBTED = "every upload, noise doubted"


@dataclass
class Uploads:
    """Reads every reply on its way, and scores the canaries of the client that sent it.

    Attributes:
        scores: sums over uploads, (m,), by what is believed of the noise.
        first: the first upload in which an A moved, and its client.
    """

    federation: Federation
    canaries: Canaries
    scores: dict[str, Tensor] = field(init=False)
    first: tuple[int, Tensors] | None = None

    def __post_init__(self) -> None:
        names = [UPLOADS] if self.federation.clients.budget is None else [UPLOADS, DOUBTED]
        m = len(self.canaries.rows)
        self.scores = {name: torch.zeros(m, dtype=torch.float64) for name in names}
        clients = self.federation.clients
        reply = clients.reply

        def watched(message: Message, view: Any, done: Any, steps: int) -> Message:
            answer = reply(message, view, done, steps)
            self.look(view.client, view.state, answer)
            return answer

        clients.reply = watched  # type: ignore[method-assign]

    def look(self, client: int, start: Tensors, answer: Message) -> None:
        """Score the canaries of a client by what it sent."""
        federation, layout = self.federation, self.federation.adapted.layout
        sent = to_tensors(records(answer.content, ArrayRecord)[0])
        names = [spec.name for spec in layout.trained]
        change = {n: sent.get(n, start[n]).to(start[n]) - start[n] for n in names}
        if self.first is None and any(bool(t.any()) for n, t in change.items() if n.endswith(A)):
            self.first = (client, change)
        own = np.flatnonzero(self.canaries.owners == client)
        if len(own) < 2:
            return
        held = federation.clients.training_rows(client)
        others = np.setdiff1d(held, self.canaries.rows)
        rows = np.concatenate([self.canaries.rows[own], others])
        gradients = example_gradients(federation.engine, start, rows)
        clip, noise = _strength(federation, client, len(others) + len(own) // 2)
        beliefs = {UPLOADS: noise, DOUBTED: 0.0}
        for name, scores in self.scores.items():
            found = decoded(gradients, layout.flatten(change), clip, beliefs[name])
            scores[own] += standardised(found[: len(own)])


def _strength(federation: Federation, client: int, examples: int) -> tuple[float, float]:
    """C, and the noise's variance over that of how often an example is in a step."""
    budget = federation.clients.budget
    if budget is None:
        return math.inf, 0.0
    terms, clip = budget.terms(client, examples), budget.section.clip
    z = terms.noise_multiplier
    return clip, (z * clip) ** 2 / terms.sample_rate if z > 0 else 0.0
