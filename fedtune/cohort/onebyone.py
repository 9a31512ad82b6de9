"""The sequential backend: a plain loop over PEFT's own layers and torch's own optimisers.

It is the reference that the cohort backend is held to, and the fallback for models whose trained
layers cannot be stacked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedtune.adapters.layout import Layout, Tensors, load_tensors
from fedtune.cohort.backend import Setting
from fedtune.cohort.base_shift import BaseShift
from fedtune.cohort.per_example import Made
from fedtune.cohort.plan import ClientResult, ClientWork, out_of_patience, step_rates
from fedtune.cohort.private import PrivateSteps, mean_losses
from fedtune.cohort.pull import Pulls, pulls_of
from fedtune.cohort.stacked import Binding, CohortDropout, batch_keys, holds_trained
from fedtune.scenario.local import LocalSection
from fedtune.tasks.base import Inputs, Rows


class SequentialBackend:
    """Trains clients one after another on the PEFT model itself."""

    name = "sequential"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model = setting.adapted.model
        self.binding = Binding()
        key_dropout(self.model, self.binding, {spec.name for spec in setting.layout.trained})
        load_tensors(self.model, setting.layout.frozen, setting.adapted.initial)
        self.shift = BaseShift(self.model, setting.layout)

    def train(self, works: Sequence[ClientWork], server_round: int) -> list[ClientResult]:
        """Train clients in turn."""
        return [self._train(work, server_round) for work in works]

    def logits(self, state: Tensors, inputs: Inputs) -> Tensor:
        """The output of the model with the given trained tensors, without gradients."""
        with self.holding(state), torch.no_grad():
            return self._forward(inputs)

    @contextmanager
    def holding(self, state: Tensors) -> Iterator[nn.Module]:
        """The model with the given tensors in place, without dropout."""
        self._load(state)
        self.binding.dropout_keys = None
        with self._precision():
            yield self.model

    def gradient(self, works: Sequence[ClientWork], step: int = 0) -> Tensor:
        """The gradient of each client's loss at a step from its start, (K, P)."""
        return torch.stack([self._gradient(work, step) for work in works])

    def _load(self, state: Tensors) -> None:
        self.shift.put(state)
        specs = self.setting.layout.specs
        load_tensors(self.model, [s for s in specs if s.trained or s.name in state], state)

    def _parameters(self, layout: Layout) -> list[nn.Parameter]:
        return [self.model.get_parameter(spec.parameter) for spec in layout.trained]

    def _gradient(self, work: ClientWork, step: int) -> Tensor:
        self._load(work.state)
        self.model.zero_grad()
        self._backward(work, step)
        parameters = self._parameters(self.setting.layout.training(work.only))
        return torch.cat([_grad(p).reshape(-1) for p in parameters])

    def _train(self, work: ClientWork, server_round: int) -> ClientResult:
        setting, layout = self.setting, self.setting.layout.training(work.only)
        self._load(work.state)
        parameters = self._parameters(layout)
        optimizer = make_optimizer(setting.local, parameters)
        rates = step_rates(setting.local, len(work.steps), server_round, setting.rounds)
        pulls = None
        if work.pull is not None:
            flat = layout.flatten(work.state).to(setting.device, setting.master)
            pulls = pulls_of([work.pull], layout, flat.unsqueeze(0))
        losses: list[float] = []
        epochs: list[float] = []
        noise = PrivateSteps([work.noise]) if work.noise else None
        for step, rate in enumerate(rates):
            optimizer.param_groups[0]["lr"] = rate
            self.model.zero_grad()
            if noise is None:
                losses.append(self._backward(work, step))
            else:
                self._protected(work, step, parameters, noise)
                losses.append(0.0)
            if pulls is not None:
                _pull(pulls, layout, parameters)
            if setting.local.clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, setting.local.clip)
            optimizer.step()
            if setting.local.early_stopping and step + 1 in work.epoch_ends:
                index = work.epoch_ends.index(step + 1)
                epoch = losses[work.epoch_ends[index - 1] if index else 0 :]
                epochs.append(sum(epoch) / len(epoch))
                if out_of_patience(epochs, setting.local.early_stopping):
                    break
        tensors = {
            spec.name: parameter.detach().clone(memory_format=torch.contiguous_format)
            for spec, parameter in zip(layout.trained, parameters, strict=True)
        }
        mean, done = sum(losses) / len(losses), len(losses)
        return ClientResult(work.client, tensors, mean, done, work.examples, sum(rates[:done]))

    def _backward(self, work: ClientWork, step: int) -> float:
        batches = [self.setting.data.gather(self._index(rows)) for rows in work.steps[step]]
        total = sum(float(self.setting.objective.counts(b.labels).sum()) for b in batches)
        drops = work.dropout_key is not None
        key = torch.tensor([work.dropout_key], device=self.setting.device) if drops else None
        loss = 0.0
        for micro, batch in enumerate(batches):
            self.binding.dropout_keys = None if key is None else batch_keys(key, step, micro)
            logits = self._forward(batch.inputs)
            part = self.setting.objective.losses(logits, batch.labels).sum() / total
            part.backward()
            loss += float(part.detach())
        return loss

    def _protected(
        self, work: ClientWork, step: int, parameters: list[nn.Parameter], noise: PrivateSteps
    ) -> None:
        """The step's noisy gradient, from the gradients of its examples one by one."""
        total = torch.zeros(sum(p.numel() for p in parameters)).to(parameters[0])
        drops = work.dropout_key is not None
        key = torch.tensor([work.dropout_key], device=self.setting.device) if drops else None
        for micro, rows in enumerate(work.steps[step]):
            batch = self.setting.data.gather(self._index(rows))
            self.binding.dropout_keys = None if key is None else batch_keys(key, step, micro)
            logits = self._forward(batch.inputs)
            for loss in mean_losses(self.setting.objective, logits, batch.labels):
                parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                flat = torch.cat(
                    [_grad_or_zero(g, p) for g, p in zip(parts, parameters, strict=True)]
                )
                valid = torch.ones(1, 1, dtype=torch.bool, device=flat.device)
                owner = torch.zeros(1, dtype=torch.int64, device=flat.device)
                total += noise.clipped({"": Made(flat.unsqueeze(0))}, valid, owner)[0]
        made = noise.noised(total.unsqueeze(0))[0].split([p.numel() for p in parameters])
        for part, parameter in zip(made, parameters, strict=True):
            parameter.grad = part.view_as(parameter)

    def _forward(self, inputs: Inputs) -> Tensor:
        with self._precision():
            return self.setting.objective.logits(self.model, inputs)

    def _precision(self) -> torch.autocast:
        half = self.setting.dtype == torch.bfloat16
        return torch.autocast(self.setting.device.type, torch.bfloat16, enabled=half)

    def _index(self, rows: Rows) -> Tensor:
        return torch.from_numpy(rows).to(self.setting.device)


def make_optimizer(local: LocalSection, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's own optimiser for the scenario's `[local]`."""
    if local.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, local.lr, momentum=local.momentum, weight_decay=local.weight_decay
        )
    kind = torch.optim.Adam if local.optimizer == "adam" else torch.optim.AdamW
    betas = (local.betas[0], local.betas[1])
    return kind(parameters, local.lr, betas, local.eps, local.weight_decay)


def key_dropout(model: nn.Module, binding: Binding, trained: Collection[str]) -> None:
    """Replace the dropout of adapters and trained modules by the keyed one, in place.

    Names are those that the stacked layers use, so both backends drop the same positions. The
    dropout of a head that is not trained stays off, as the base's does.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Dropout | CohortDropout):
            continue
        if ".lora_dropout" in name:
            owner = name.split(".lora_dropout")[0]
        elif holds_trained(name.split(".modules_to_save.default")[0], trained):
            owner = name.replace(".modules_to_save.default", "")
        else:
            continue
        parent, _, leaf = name.rpartition(".")
        new = CohortDropout(binding, owner, module.p)
        model.get_submodule(parent)._modules[leaf] = new


def _pull(pulls: Pulls, layout: Layout, parameters: list[nn.Parameter]) -> None:
    theta = torch.cat([p.detach().reshape(-1) for p in parameters]).unsqueeze(0)
    grad = torch.zeros_like(theta)
    pulls.add(grad, theta)
    for part, parameter in zip(layout.split(grad[0]).values(), parameters, strict=True):
        parameter.grad = _grad(parameter) + part


def _grad_or_zero(grad: Tensor | None, parameter: Tensor) -> Tensor:
    return (torch.zeros_like(parameter) if grad is None else grad).reshape(-1)


def _grad(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
