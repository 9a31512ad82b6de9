"""`image-classification`: any Transformers model with an image-classification head."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import AutoImageProcessor

from fedtune.errors import ScenarioError, first_line
from fedtune.scenario.task import TaskSection
from fedtune.tasks.base import Classification
from fedtune.tasks.bases import load_base, pretrained, quiet
from fedtune.tasks.cache import named_files
from fedtune.tasks.examples import Examples
from fedtune.tasks.labels import encode_labels
from fedtune.tasks.pictures import ALTERED
from fedtune.tasks.pixels import pixel_table
from fedtune.tasks.sources import OWN_TEST, TEST_SHARE, load_splits

DIGITS, DIGITS_RANGE = "builtin:digits", 16.0


def load_images(task: TaskSection) -> Examples:
    """The examples of an image task, as the base's own processor makes them.

    Raises:
        ScenarioError: for data or a base that does not fit.
    """
    splits, notes = load_splits(task, ("image", "label"), {DIGITS: _digits})
    labels, classes = encode_labels(task, splits, drawn=OWN_TEST in notes)
    base = load_base(task, classes)
    channels = int(getattr(base.model.config, "num_channels", 3))
    processor = load_processor(base.source)
    tables = {
        name: pixel_table(task, split, labels[name], processor, channels, classes)
        for name, split in splits.items()
    }
    for what in ALTERED:
        if count := sum(table.altered[what] for table in tables.values()):
            notes.append(f"data: {count} {what}")
    files = [file for split in splits.values() for file in named_files(split, task.image)]
    return Examples(
        base, Classification(), tables["train"], tables["test"], splits["train"], classes,
        notes=[*notes, *base.notes], files=files,
    )  # fmt: skip


def load_processor(path: str) -> Any:
    """The image processor of a base.

    Raises:
        ScenarioError: if the folder holds none.
    """
    try:
        with quiet():
            return pretrained(AutoImageProcessor, path)
    except (OSError, ValueError) as error:
        raise ScenarioError(
            f"task.base = {path!r}: no image processor: {first_line(error)}"
        ) from None


@cache
def _digits() -> DatasetDict:
    """scikit-learn's 1,797 scans, one fifth of each class kept for testing, always the same."""
    bunch = load_digits()
    scaled = np.round(bunch.images * (255.0 / DIGITS_RANGE)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(scaled)), test_size=TEST_SHARE, stratify=bunch.target, random_state=0
    )
    names = [str(d) for d in range(10)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})

    def split(rows: Any) -> Dataset:
        images = [Image.fromarray(scaled[i]) for i in rows]
        return Dataset.from_dict(
            {"image": images, "label": [int(bunch.target[i]) for i in rows]}, features=features
        )

    return DatasetDict({"train": split(np.sort(train)), "test": split(np.sort(test))})
