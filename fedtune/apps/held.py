"""Tensors that a client holds already, so that an unchanged one need not be sent again.

The server names the groups of tensors that clients keep and stamps each with a digest of what is
in it; a message to a client that holds a group in that version leaves its tensors out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedtune.adapters.layout import BASE, A, B, Tensors
from fedtune.apps.store import ClientStore

HELD, VERSIONS = "held/", "base/versions"
FACTORS, WHOLE, GROUP = "residual/", "whole/", "W"
GROUPS = {"A": ".lora_A.", "B": ".lora_B."}


def group_of(name: str) -> str | None:
    """The group of a tensor, or None if it is sent every time."""
    return next((group for group, part in GROUPS.items() if part in name), None)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """A digest of tensors and their names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def with_held(store: ClientStore, sent: Tensors, config: Mapping[str, Any]) -> Tensors:
    """What a client was sent, with what was left out because it holds that.

    Raises:
        KeyError: if it holds another version.
    """
    whole = dict(sent)
    for key, digest in config.items():
        if not key.startswith(HELD):
            continue
        group = key.removeprefix(HELD)
        fresh = {name: tensor for name, tensor in sent.items() if group_of(name) == group}
        known = store.recall(group, str(digest))
        if known is None and not fresh:
            raise KeyError(f"holds no tensors {group} of version {digest}")
        example = next(iter(sent.values()), None)
        if known is None or (example is not None and _elsewhere(known, example)):
            known = fresh or {name: tensor.to(example) for name, tensor in (known or {}).items()}
            store.remember(group, str(digest), known)
        whole.update(known)  # the same tensors for all, whoever was sent them
    return whole


def _elsewhere(tensors: Tensors, example: Tensor) -> bool:
    return any(tensor.device != example.device for tensor in tensors.values())


def next_version(before: str, factors: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """The version of a base after a residual: a digest of all residuals up to it."""
    parts = {f"{name}{i}": part for name, pair in factors.items() for i, part in enumerate(pair)}
    return hashlib.sha256(f"{before}{digest_of(parts)}".encode()).hexdigest()[:16]


def unmoved(adapter: Mapping[str, Tensor]) -> Tensors:
    """The changes, by name, of the base under an adapter's layers, before there is any."""
    layers = [name.removesuffix(B) for name in adapter if name.endswith(B)]
    shapes = {layer: (len(adapter[layer + B]), adapter[layer + A].shape[1]) for layer in layers}
    return {layer + BASE: torch.zeros(shape) for layer, shape in shapes.items()}


def base_moved(base: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]]) -> Tensors:
    """The changes of a base, by layer, after one more residual; under their tensors' names."""
    return {
        layer + BASE: torch.addmm(base[layer].to(u), u, v.to(u))
        for layer, (u, v) in factors.items()
    }


def base_of(
    store: ClientStore, sent: Tensors, config: Mapping[str, Any], zeros: Tensors
) -> Tensors:
    """How a client's base differs from the pretrained one, by tensor name.

    What it holds of the versions that a message names is brought to the last of them.

    Args:
        sent: residuals, or the whole change.
        zeros: the change of a base that has seen nothing.

    Raises:
        KeyError: if it holds none of these versions.
    """
    versions = [str(version) for version in config.get(VERSIONS, [""])]
    whole = {n.removeprefix(WHOLE): t for n, t in sent.items() if n.startswith(WHOLE)}
    held = whole or None
    start = len(versions) - 1
    while held is None and start >= 0:
        held = store.recall(GROUP, versions[start]) if versions[start] else zeros
        start -= held is None
    if held is None:
        raise KeyError(f"holds no base of version {versions[0]}")
    for step in range(start, len(versions) - 1):
        layers = [name.removesuffix(BASE) for name in zeros]
        pairs = {
            layer: (sent[f"{FACTORS}{step}/{layer}/U"], sent[f"{FACTORS}{step}/{layer}/V"])
            for layer in layers
        }
        held = base_moved({layer: held[layer + BASE] for layer in layers}, pairs)
    if versions[-1] and store.recall(GROUP, versions[-1]) is None:
        store.remember(GROUP, versions[-1], held)
    return held
