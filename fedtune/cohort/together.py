"""The cohort backend: K clients in one forward and one backward pass.

Σ_k loss_k is differentiated once; client k's loss touches row k of the (K, P) matrix alone, so
each row gets exactly its own client's gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedtune.adapters.layout import Layout, Tensors
from fedtune.adapters.packed import Packed
from fedtune.cohort.backend import Setting
from fedtune.cohort.base_shift import BaseShift
from fedtune.cohort.folding import folded_batches, folded_parts
from fedtune.cohort.optimizer import StackedOptimizer
from fedtune.cohort.per_example import Recorder
from fedtune.cohort.plan import ClientResult, ClientWork, out_of_patience, step_rates
from fedtune.cohort.private import PrivateSteps, mean_losses
from fedtune.cohort.pull import pulls_of
from fedtune.cohort.stacked import (
    Binding,
    NotStackableError,
    batch_keys,
    stack_model,
    unstack,
)
from fedtune.tasks.base import Batch, Inputs, Rows


class CohortBackend:
    """Trains the clients of a cohort together.

    While it is open, the model's adapter layers are stacked ones; `close` puts PEFT's back.

    Raises:
        NotStackableError: if a trained layer has no stacked form.
    """

    name = "cohort"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        if setting.adapted.config is None:
            raise NotStackableError("a network without an adapter")
        self.binding = Binding()
        trained = {spec.name for spec in setting.layout.trained}
        self.model = setting.adapted.model
        self._swaps = stack_model(self.model, self.binding, trained)
        initial = {
            spec.name: setting.adapted.initial[spec.name].to(setting.device)
            for spec in setting.layout.frozen
            if spec.parameter
        }
        made = setting.layout.matrices(initial)
        self.frozen = {name: tensor.to(setting.dtype) for name, tensor in made.items()}
        self.shift = BaseShift(self.model, setting.layout)

    def close(self) -> None:
        """Give the model its own layers back."""
        self.shift.back()
        unstack(self._swaps)

    def train(self, works: Sequence[ClientWork], server_round: int) -> list[ClientResult]:
        """Train one cohort; results in the order of `works`."""
        cohort = _Cohort(self, works, server_round)
        for step in range(max(len(work.steps) for work in works)):
            cohort.retire(step)
            if not cohort.active:
                break
            cohort.step(step)
        return cohort.results()

    def logits(self, state: Tensors, inputs: Inputs) -> Tensor:
        """The output of the model with the given trained tensors, without gradients."""
        with self.holding(state) as model, torch.no_grad():
            return self.setting.objective.logits(model, inputs)

    @contextmanager
    def holding(self, state: Tensors) -> Iterator[nn.Module]:
        """The model with the given tensors in place, without dropout."""
        layout = self.setting.layout
        theta = layout.flatten(state).to(self.setting.device, self.setting.master)
        self._bind(layout, theta.unsqueeze(0), self.constants(layout, state), None)
        yield self.model

    def constants(self, layout: Layout, state: Tensors) -> Tensors:
        """The tensors that are not trained, as the layers take them: a state's, else initial.

        Those of the base itself are put into it.
        """
        self.shift.put(state)
        given = layout.matrices(layout.constants(state))
        own = {n: t.to(self.setting.device, self.setting.dtype) for n, t in given.items()}
        return {**self.frozen, **own}

    def forward(
        self,
        layout: Layout,
        theta: Tensor,
        constants: Tensors,
        inputs: Inputs,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The output for K·b examples, client by client, under the rows of theta, (K, P)."""
        self._bind(layout, theta, constants, keys)
        return self.setting.objective.logits(self.model, inputs)

    def _bind(self, layout: Layout, theta: Tensor, constants: Tensors, keys: Tensor | None) -> None:
        dtype = self.setting.dtype
        if layout.chooses:  # by scores in full precision: rounded ones would tie
            tensors = layout.matrices(layout.split(theta))
            tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        else:
            tensors = layout.split(theta.to(dtype))
        self.binding.tensors = {**constants, **tensors}
        self.binding.clients, self.binding.dropout_keys = len(theta), keys

    def gradient(self, works: Sequence[ClientWork], step: int = 0) -> Tensor:
        """The gradient of each client's loss at a step from its start, (K, P)."""
        cohort = _Cohort(self, works, 1)
        cohort.backward(step)
        assert cohort.theta.grad is not None
        return cohort.theta.grad


class _Cohort:
    """The moving parts of one cohort's round; rows of `theta` are the active clients'."""

    def __init__(
        self, backend: CohortBackend, works: Sequence[ClientWork], server_round: int
    ) -> None:
        self.backend, self.setting, self.works = backend, backend.setting, works
        device, master = self.setting.device, self.setting.master
        self.layout = self.setting.layout.training(works[0].only)
        self.constants = backend.constants(self.layout, works[0].state)
        starts = [tuple((name, id(tensor)) for name, tensor in w.state.items()) for w in works]
        flat = {
            start: self.layout.flatten(work.state).to(device, master)
            for start, work in dict(zip(starts, works, strict=True)).items()
        }
        self.private = PrivateSteps([w.noise for w in works]) if works[0].noise else None
        self.theta = torch.stack([flat[start] for start in starts])
        self.theta.requires_grad_(self.private is None)
        self.final = torch.empty_like(self.theta, requires_grad=False)
        self.optimizer = StackedOptimizer(self.setting.local, self.theta)
        self.pulls = pulls_of([work.pull for work in works], self.layout, self.theta)
        keys = [work.dropout_key for work in works]
        self.keys = None if None in keys else torch.tensor(keys, device=device)
        self.active = list(range(len(works)))
        self.losses: list[tuple[list[int], Tensor]] = []
        self.stopped: set[int] = set()
        self.epoch_sums = torch.zeros(len(works), dtype=master, device=device)
        self.epoch_losses: list[list[float]] = [[] for _ in works]
        rates = {
            steps: step_rates(self.setting.local, steps, server_round, self.setting.rounds)
            for steps in {len(work.steps) for work in works}
        }
        self.rates = [rates[len(work.steps)] for work in works]

    def retire(self, step: int) -> None:
        """Set aside the clients that have no further step."""
        going = [
            i
            for i, k in enumerate(self.active)
            if step < len(self.works[k].steps) and k not in self.stopped
        ]
        if len(going) == len(self.active):
            return
        self._store()
        rows = torch.tensor(going, dtype=torch.int64, device=self.setting.device)
        self.theta = self.theta.detach().index_select(0, rows)
        self.theta.requires_grad_(self.private is None)
        if self.private is not None:
            self.private.keep(going)
        self.optimizer.keep(rows)
        if self.pulls is not None:
            self.pulls.keep(rows)
        if self.keys is not None:
            self.keys = self.keys.index_select(0, rows)
        self.active = [self.active[i] for i in going]

    def step(self, step: int) -> None:
        """One optimiser step of every active client."""
        loss = self.backward(step) if self.private is None else self.protected(step)
        self.losses.append((list(self.active), loss))
        assert self.theta.grad is not None
        if self.pulls is not None:
            self.pulls.add(self.theta.grad, self.theta)
        rates = [self.rates[k][step] for k in self.active]
        rate = torch.tensor(rates, dtype=self.theta.dtype, device=self.theta.device)
        self.optimizer.step(self.theta, self.theta.grad, rate.unsqueeze(1))
        self.theta.grad = None
        if self.setting.local.early_stopping is not None:
            self._watch(step)

    def backward(self, step: int) -> Tensor:
        """Accumulate the step's gradient in `theta.grad`; gives each client's loss, (K,)."""
        batches = list(folded_batches(self.setting, self._rows(step)))
        counted = [self._counts(batch, valid) for batch, valid in batches]
        total = torch.stack(counted).sum(0)
        loss = torch.zeros_like(total)
        for micro, (batch, valid) in enumerate(batches):
            keys = None if self.keys is None else batch_keys(self.keys, step, micro)
            logits = self.backend.forward(
                self.layout, self.theta, self.constants, batch.inputs, keys
            )
            losses = self.setting.objective.losses(logits, batch.labels).view(valid.shape)
            mean = torch.where(valid, losses, 0.0).sum(1) / total
            mean.sum().backward()  # type: ignore[no-untyped-call]
            loss += mean.detach()
        return loss

    def protected(self, step: int) -> Tensor:
        """Put the step's noisy gradient into `theta.grad`; of the loss nothing is told."""
        assert self.private is not None
        total = torch.zeros_like(self.theta)
        for owners, places, batch, valid in folded_parts(self.setting, self._rows(step)):
            keys = self.keys
            if keys is not None:
                keys = batch_keys(keys.index_select(0, owners), step, places)
            theta = self.theta.index_select(0, owners)
            recorder = self.backend.binding.tap = Recorder()
            try:
                logits = self.backend.forward(
                    self.layout, theta, self.constants, batch.inputs, keys
                )
            finally:
                self.backend.binding.tap = None
            losses = mean_losses(self.setting.objective, logits, batch.labels)
            torch.where(valid.ravel(), losses, 0.0).sum().backward()  # type: ignore[no-untyped-call]
            names = [spec.name for spec in self.layout.trained]
            samples = recorder.samples(names, self.setting.per_example, theta.dtype)
            total += self.private.clipped(samples, valid, owners)
        self.theta.grad = self.private.noised(total)
        return torch.zeros_like(total[:, 0])

    def results(self) -> list[ClientResult]:
        """What every client has at the end."""
        self._store()
        done = torch.zeros(len(self.works), dtype=torch.float64)
        steps = [0] * len(self.works)
        for active, loss in self.losses:
            done[active] += loss.double().cpu()
            for k in active:
                steps[k] += 1
        rows = self.final.unbind()
        return [
            ClientResult(
                work.client,
                Packed(self.layout.places, rows[k]),
                float(done[k]) / max(steps[k], 1),
                steps[k],
                work.examples,
                sum(self.rates[k][: steps[k]]),
            )
            for k, work in enumerate(self.works)
        ]

    def _store(self) -> None:
        self.final[self.active] = self.theta.detach()

    def _rows(self, step: int) -> list[tuple[Rows, ...]]:
        return [self.works[k].steps[step] for k in self.active]

    def _counts(self, batch: Batch, valid: Tensor) -> Tensor:
        counts = self.setting.objective.counts(batch.labels).to(self.theta.dtype)
        return torch.where(valid, counts.view(valid.shape), 0.0).sum(1)

    def _watch(self, step: int) -> None:
        rule = self.setting.local.early_stopping
        assert rule is not None
        self.epoch_sums[self.active] += self.losses[-1][1]
        ended = [k for k in self.active if step + 1 in self.works[k].epoch_ends]
        if not ended:
            return
        sums = self.epoch_sums.tolist()
        self.epoch_sums[ended] = 0.0
        for k in ended:
            ends = (0, *self.works[k].epoch_ends)
            steps = step + 1 - ends[ends.index(step + 1) - 1]
            self.epoch_losses[k].append(sums[k] / steps)
            if out_of_patience(self.epoch_losses[k], rule):
                self.stopped.add(k)
