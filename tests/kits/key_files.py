"""Small files that the cases of the schema's keys read."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import SwinConfig, SwinForImageClassification

from fedtune.tasks.bases import base_path
from fedtune.tasks.images import load_processor
from fedtune.tasks.words import NUMBERS, intents

TRAIN, TEST = 32, 12
LABELS, KINDS = ("balance", "card", "travel", "weather"), ("odd", "even", "third")


def write_files(folder: Path) -> Path:
    """All of them; gives the folder."""
    folder.mkdir(parents=True)
    rows = _rows()
    for name, part in (("rows", rows[:TRAIN]), ("exam", rows[TRAIN : TRAIN + TEST]),
                       ("second", rows[TRAIN + TEST : TRAIN + 2 * TEST])):  # fmt: skip
        _csv(folder / f"{name}.csv", part)
        _csv(folder / f"bare-{name}.csv", part, header=False)
    both = [{**row, "label": f"{row['label']}|other"} if n % 4 == 0 else row
            for n, row in enumerate(rows[:TRAIN])]  # fmt: skip
    _csv(folder / "joined.csv", both)
    (folder / "lines.txt").write_text("".join(f"{row['text']}\n" for row in rows[:TRAIN]))
    _csv(folder / "less.csv", _subtractions(24))
    right, wrong = _subtractions(2)
    _csv(folder / "less-exam.csv", [right, {**wrong, "response": "leaves ten"}])
    for name, turns in (("first", [(1, 0), (1, 1), (2, 2)]), ("later", [(1, 3), (2, 0), (2, 1)])):
        text = "".join(f"{turn},{client}\n" for turn, client in turns)
        (folder / f"{name}-trace.csv").write_text(f"round,client\n{text}")
    _pictures(folder / "pictures")
    _swin(folder / "swin")
    return folder


def _rows() -> list[dict[str, Any]]:
    """Built-in requests of four kinds, with a second text and a second label."""
    some = [row for row in intents()["train"] if row["label"] in LABELS]
    return [
        {
            "text": row["text"],
            "label": row["label"],
            "other": " ".join(reversed(row["text"].split())),
            "kind": KINDS[n % len(KINDS)],
        }
        for n, row in enumerate(some[: TRAIN + 2 * TEST])
    ]


def _subtractions(count: int) -> list[dict[str, Any]]:
    """What the built-in decoder has learned already."""
    pairs = [(a, b) for a in range(9, 2, -1) for b in range(1, a)][:count]
    return [
        {
            "instruction": f"take {NUMBERS[b]} from {NUMBERS[a]}",
            "response": f"leaves {NUMBERS[a - b]}",
        }
        for a, b in pairs
    ]


def _csv(path: Path, rows: list[dict[str, Any]], header: bool = True) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if header:
            writer.writeheader()
        writer.writerows(rows)


def _pictures(folder: Path) -> None:
    """Two columns of 8 x 8 pictures, saved by datasets."""
    draw = np.random.default_rng(0)
    features = Features(
        {"image": ImageFeature(), "other": ImageFeature(), "label": ClassLabel(names=["a", "b"])}
    )

    def split(count: int) -> Dataset:
        pictures = draw.integers(0, 256, (2, count, 8, 8), dtype=np.uint8)
        one, other = ([Image.fromarray(picture) for picture in some] for some in pictures)
        columns = {"image": one, "other": other, "label": [n % 2 for n in range(count)]}
        return Dataset.from_dict(columns, features=features)

    DatasetDict({"train": split(TRAIN), "test": split(TEST)}).save_to_disk(str(folder))


def _swin(folder: Path) -> None:
    """A base whose layers lie in stages: `layers.1` is one, `blocks.1` a layer of each."""
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=8, patch_size=1, num_channels=1, embed_dim=8, depths=[1, 2, 1],
        num_heads=[1, 2, 2], window_size=2, num_labels=10,
    )  # fmt: skip
    SwinForImageClassification(config).save_pretrained(folder)
    load_processor(base_path("builtin:vit-letters")).save_pretrained(folder)
