"""Checkpoints: enough to go on bit for bit, and never mistaken for whole when they are not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedtune.files import write_atomically, write_json

KEEP = 2
GROUPS = ("server", "strategy", "clients", "faults")


@dataclass
class Checkpoint:
    """The state of a run after a round; all its randomness follows from seed and round.

    Attributes:
        round: the last finished one, 0 before the first.
        groups: tensors by owner, one of `GROUPS`.
        initial: the evaluation before round 1.
    """

    round: int
    groups: dict[str, dict[str, Tensor]]
    initial: dict[str, float] | None = None


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, tensors first, then the note that makes it count; keep the last two."""
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for group, members in checkpoint.groups.items():
        for name, tensor in members.items():
            held = tensor.detach().cpu().contiguous()
            place = held.untyped_storage().data_ptr()
            tensors[f"{group}:{name}"] = held.clone() if place in places else held
            places.add(place)
    data = save(tensors)
    stem = folder / f"round-{checkpoint.round:06d}"
    write_atomically(stem.with_suffix(".safetensors"), data)
    note = {
        "round": checkpoint.round,
        "sha256": hashlib.sha256(data).hexdigest(),
        "initial": checkpoint.initial,
    }
    write_json(stem.with_suffix(".json"), note)
    for old in sorted(folder.glob("round-*.json"))[:-KEEP]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None; damaged ones are passed over."""
    for note in sorted(folder.glob("round-*.json"), reverse=True):
        if (found := _read(note)) is not None:
            return found
    return None


def _read(note: Path) -> Checkpoint | None:
    try:
        meta = json.loads(note.read_text("utf-8"))
        data = note.with_suffix(".safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != meta["sha256"]:
            return None
        tensors = load(data)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
    for key, tensor in tensors.items():
        group, name = key.split(":", 1)
        groups[group][name] = tensor
    return Checkpoint(meta["round"], groups, meta["initial"])
