"""`image-classification`: any Transformers model with an image-classification head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from PIL import Image
from safetensors import SafetensorError
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fedtune.adapters.wrap import PretrainedBase
from fedtune.errors import ScenarioError
from fedtune.scenario.schema import TaskSection
from fedtune.tasks.base import Table

TEST_SHARE = 0.2
DIGITS_RANGE = 16.0
FILES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


@dataclass(frozen=True)
class ImageSplits:
    """Images with labels, not yet processed.

    Attributes:
        train: images and labels to be dealt to clients.
        test: images and labels of the central evaluation.
        classes: names of the classes.
    """

    train: tuple[list[Image.Image], np.ndarray[Any, np.dtype[np.int64]]]
    test: tuple[list[Image.Image], np.ndarray[Any, np.dtype[np.int64]]]
    classes: list[str]


def base_path(source: str) -> str:
    """What `from_pretrained` takes for a scenario's `task.base`.

    Raises:
        ScenarioError: if a `builtin:` model or a local folder does not exist.
    """
    if not source.startswith("builtin:"):
        if source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
            raise ScenarioError(f"task.base = {source!r}: no such folder")
        return str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source
    folder = resources.files("fedtune") / "builtin"
    names = sorted(f.name for f in folder.iterdir() if f.is_dir() and f.name[0] not in "._")
    name = source.removeprefix("builtin:")
    if name not in names:
        allowed = ", ".join(f"builtin:{n}" for n in names)
        raise ScenarioError(f"task.base = {source!r}: allowed: {allowed}, a folder or a hub name")
    return str(folder / name)


def load_image_base(task: TaskSection, classes: list[str]) -> PretrainedBase:
    """The base model with a head for the classes."""
    path = base_path(task.base)
    try:
        with _quiet():
            model, info = AutoModelForImageClassification.from_pretrained(
                path,
                num_labels=len(classes),
                id2label=dict(enumerate(classes)),
                label2id={name: i for i, name in enumerate(classes)},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise ScenarioError(f"task.base = {task.base!r}: {_first(error)}") from None
    fresh = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    head = _head(model, fresh)
    if not head or model.main_input_name != "pixel_values":
        raise ScenarioError(
            f"task.base = {task.base!r}: {type(model).__name__} has no head of its own over "
            "pixel_values"
        )
    outside = {n.rpartition(".")[0] for n in fresh if n.split(".")[0] not in head}
    return PretrainedBase(model, [*head, *sorted(outside)], frozenset(fresh), path)


def _head(model: PreTrainedModel, fresh: set[str]) -> list[str]:
    """Children beside the backbone; where the prefix names no child, those that are all new."""
    children = {n: c for n, c in model.named_children() if any(True for _ in c.parameters())}
    if model.base_model_prefix in children:
        return [name for name in children if name != model.base_model_prefix]
    return [
        name
        for name, child in children.items()
        if all(f"{name}.{parameter}" in fresh for parameter, _ in child.named_parameters())
    ]


def load_image_splits(task: TaskSection) -> ImageSplits:
    """The task's images: `builtin:digits`, a folder saved by `datasets`, or a hub name."""
    return _digits() if task.data == "builtin:digits" else _saved(task)


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
        with _quiet():
            return AutoImageProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ScenarioError(f"task.base = {path!r}: no image processor: {_first(error)}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Transformers' progress bars and advice."""
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _digits() -> ImageSplits:
    """scikit-learn's 1,797 scans, one fifth of each class kept for testing, always the same."""
    bunch = load_digits()
    scaled = np.round(bunch.images * (255.0 / DIGITS_RANGE)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=0
    )

    def split(rows: Any) -> tuple[list[Image.Image], Any]:
        return [Image.fromarray(scaled[i]) for i in rows], labels[rows]

    return ImageSplits(split(np.sort(train)), split(np.sort(test)), [str(d) for d in range(10)])


def _saved(task: TaskSection) -> ImageSplits:
    if task.data.startswith("builtin:"):
        raise ScenarioError(
            f"task.data = {task.data!r}: allowed: builtin:digits, builtin:synthetic, a folder "
            "saved by datasets, or a hub name"
        )
    splits = _dataset(task.data)
    for split in ("train", "test"):
        _check_columns(task, split, splits[split])
    names = sorted({str(v) for v in splits["train"][task.label]})
    feature = splits["train"].features[task.label]
    names = list(getattr(feature, "names", None) or sorted(names, key=lambda n: (len(n), n)))

    def labels(part: Dataset) -> Any:
        values = part[task.label]
        index = {name: i for i, name in enumerate(names)}
        if getattr(feature, "names", None):
            return _in_range(np.asarray(values, dtype=np.int64), task, len(names))
        if unknown := {str(v) for v in values} - index.keys():
            raise ScenarioError(f"task.label = {task.label!r}: {min(unknown)} is not in training")
        return np.asarray([index[str(v)] for v in values], dtype=np.int64)

    train, test = splits["train"], splits["test"]
    return ImageSplits(
        (_images(task, train), labels(train)), (_images(task, test), labels(test)), names
    )


def _check_columns(task: TaskSection, name: str, split: Dataset) -> None:
    for key, column in (("task.image", task.image), ("task.label", task.label)):
        if column not in split.column_names:
            found = ", ".join(split.column_names)
            raise ScenarioError(f"{key} = {column!r}: no such column in {name}; it has: {found}")
    if not len(split):
        raise ScenarioError(f"task.data = {task.data!r}: split {name!r} is empty")
    _check_values(task, task.label, split[task.label], int | str)


def _check_values(task: TaskSection, column: str, values: Iterable[Any], allowed: Any) -> None:
    for value in values:
        if not isinstance(value, allowed):
            raise ScenarioError(f"task.data = {task.data!r}: column {column!r} holds {value!r}")


def _images(task: TaskSection, split: Dataset) -> list[Image.Image]:
    images = list(split[task.image])
    _check_values(task, task.image, images, Image.Image)
    return images


def _in_range(labels: Any, task: TaskSection, classes: int) -> Any:
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ScenarioError(
            f"task.label = {task.label!r}: holds {labels.min()} to {labels.max()} for "
            f"{classes} classes"
        )
    return labels


def _dataset(source: str) -> DatasetDict:
    path = Path(source).expanduser()
    if (source.startswith((".", "/", "~")) or path.suffix in FILES) and not path.exists():
        raise ScenarioError(f"task.data = {source!r}: no such file or folder")
    try:
        if path.is_file() and path.suffix in FILES:
            found = load_dataset(FILES[path.suffix], data_files=str(path))
        else:
            found = load_from_disk(str(path)) if path.is_dir() else load_dataset(source)
    except (OSError, ValueError, KeyError, DatasetGenerationError) as error:
        raise ScenarioError(f"task.data = {source!r}: {_first(error)}") from None
    if isinstance(found, Dataset):
        found = DatasetDict({"train": found})
    if "train" not in found:
        raise ScenarioError(f"task.data = {source!r}: has no split 'train'; it has: {list(found)}")
    if "test" not in found:
        if len(found["train"]) < 2:
            raise ScenarioError(
                f"task.data = {source!r}: too few examples to keep some for testing"
            )
        return found["train"].train_test_split(test_size=TEST_SHARE, seed=0)
    return found


def _first(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
