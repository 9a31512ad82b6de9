"""`image-classification`: any Transformers model with an image-classification head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import AutoImageProcessor

from fedtune.errors import ScenarioError, first_line
from fedtune.scenario.task import TaskSection
from fedtune.tasks.base import Classification, Table
from fedtune.tasks.bases import load_base, pretrained, quiet
from fedtune.tasks.examples import Examples
from fedtune.tasks.sources import TEST_SHARE, check_values, encode_labels, load_splits

DIGITS, DIGITS_RANGE = "builtin:digits", 16.0


def load_images(task: TaskSection) -> Examples:
    """The examples of an image task, as the base's own processor makes them.

    Raises:
        ScenarioError: for data or a base that does not fit.
    """
    splits, notes = load_splits(task, ("image", "label"), {DIGITS: _digits})
    labels, classes = encode_labels(task, splits)
    images = {name: list(split[task.image]) for name, split in splits.items()}
    for found in images.values():
        check_values(task, task.image, found, Image.Image)
    base = load_base(task, classes)
    channels = int(getattr(base.model.config, "num_channels", 3))
    tables = {n: process(base.source, channels, images[n], labels[n]) for n in images}
    return Examples(
        base, Classification(), tables["train"], tables["test"], splits["train"], classes,
        notes=notes,
    )  # fmt: skip


def process(path: str, channels: int, images: list[Image.Image], labels: Iterable[int]) -> Table:
    """Images as the base's own processor makes them.

    Args:
        path: of the base, which holds the processor's configuration.
        channels: 1 or 3, of the model.
        images: any size and mode.
        labels: one an image.
    """
    processor = load_processor(path)
    mode = "L" if channels == 1 else "RGB"
    arrays = [np.atleast_3d(np.asarray(image.convert(mode))) for image in images]
    pixels = processor(arrays, return_tensors="pt", input_data_format="channels_last")
    return Table({"pixel_values": pixels["pixel_values"]}, torch.as_tensor(np.asarray(labels)))


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
