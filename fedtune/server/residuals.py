"""Which residuals of FedEx-LoRA each client's base has seen, and those that it has not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedtune.adapters.layout import BASE
from fedtune.apps.held import FACTORS, VERSIONS, WHOLE
from fedtune.grids.arrays import to_record

START = ""
RESIDUAL, VERSION, SEEN = "residual.", "residual-version", "residual-seen"
Factors = dict[str, tuple[Tensor, Tensor]]


class Residuals:
    """The rounds' residuals since the first, until the base's whole change is smaller to send."""

    def __init__(self) -> None:
        self.versions = [START]
        self._steps: list[Factors] = []
        self._whole = False
        self._seen: dict[int, str] = {}
        self._model: dict[str, Tensor] = {}
        self._records: dict[int, ArrayRecord] = {}

    @property
    def version(self) -> str:
        """Of the base now."""
        return self.versions[-1]

    def add(self, factors: Factors, version: str) -> None:
        """A round's residual; the base after it has that version."""
        self.versions.append(version)
        self._steps.append(factors)
        numbers = sum(u.numel() + v.numel() for step in self._steps for u, v in step.values())
        dense = sum(len(u) * v.shape[1] for u, v in factors.values())
        if self._whole or numbers >= dense:
            self._whole = True
            self._steps, self.versions = self._steps[-1:], self.versions[-2:]
        self._records = {}

    def record(
        self, client: int, model: dict[str, Tensor], remembers: bool
    ) -> tuple[ArrayRecord | None, dict[str, Any]]:
        """What a client is sent to bring its base to that of now, and the versions on the way."""
        if self.version == START:
            return None, {}
        seen = self._seen.get(client) if remembers else None
        if seen in self.versions:
            first = self.versions.index(seen)
        elif self._whole:
            first = -1
        else:
            first = 0
        if model is not self._model:
            self._model, self._records = model, {}
        if first not in self._records:
            self._records[first] = to_record(self._tensors(first, model))
        versions = [self.version] if first < 0 else self.versions[first:]
        return self._records[first], {VERSIONS: versions}

    def _tensors(self, first: int, model: dict[str, Tensor]) -> dict[str, Tensor]:
        if first < 0:
            return {WHOLE + n: t for n, t in model.items() if BASE in n}
        return {
            f"{FACTORS}{index}/{layer}/{side}": part
            for index, step in enumerate(self._steps[first:])
            for layer, parts in step.items()
            for side, part in zip("UV", parts, strict=True)
        }

    def arrived(self, clients: Iterable[int]) -> None:
        """Replies of these clients show that their bases are that of now."""
        self._seen.update(dict.fromkeys(clients, self.version))

    def forget(self, clients: Iterable[int]) -> None:
        """These clients are sent everything next time."""
        for client in clients:
            self._seen.pop(client, None)

    def state_dict(self) -> dict[str, Tensor]:
        """Steps, versions, and which version each client has seen."""
        steps = {
            f"{RESIDUAL}{index}.{side}.{layer}": part
            for index, step in enumerate(self._steps)
            for layer, parts in step.items()
            for side, part in zip("UV", parts, strict=True)
        }
        place = {version: index for index, version in enumerate(self.versions)}
        seen = [[c, place[v]] for c, v in sorted(self._seen.items()) if v in place]
        text = ",".join([str(int(self._whole)), *self.versions]).encode()
        return {
            **steps,
            VERSION: torch.tensor(list(text), dtype=torch.uint8),
            SEEN: torch.tensor(seen, dtype=torch.int64).reshape(-1, 2),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        whole, *self.versions = bytes(state[VERSION].tolist()).decode().split(",")
        self._whole = whole == "1"
        self._seen = {client: self.versions[place] for client, place in state[SEEN].tolist()}
        steps: dict[int, dict[str, dict[str, Tensor]]] = {}
        for name, part in state.items():
            if name.startswith(RESIDUAL):
                index, side, layer = name.removeprefix(RESIDUAL).split(".", 2)
                steps.setdefault(int(index), {}).setdefault(layer, {})[side] = part
        self._steps = [
            {layer: (parts["U"], parts["V"]) for layer, parts in steps[index].items()}
            for index in sorted(steps)
        ]
