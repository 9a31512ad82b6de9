"""Images as a base's processor makes them, kept on disk as bytes and memory-mapped.

A processor ends with rescaling and normalising, value = scale · byte + shift. Where that holds for
every image of a split the bytes are kept, a quarter of the memory, and the rest is done batch by
batch; else the values are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from datasets import Dataset
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from torch import Tensor

from fedtune.console import counting
from fedtune.errors import LONGEST, ScenarioError, cut
from fedtune.scenario.task import TaskSection
from fedtune.tasks.base import Batch, Rows
from fedtune.tasks.cache import identity, made_once, mapped
from fedtune.tasks.pictures import ALTERED, Unreadable, picture_of
from fedtune.tasks.sources import own_row

CACHE_VERSION = 3
CHUNK = 64
LEVELS, ROUNDING = 255, 1e-6
PIXELS, AFFINE, COUNTS = "pixels", "affine", "altered"


@dataclass(frozen=True)
class PixelTable:
    """A split of images of one size.

    Attributes:
        pixels: uint8, or float32 where bytes do not do, (rows, channels, height, width).
        targets: (rows,) classes.
        affine: scale and shift of each channel, (2, channels, 1, 1).
        dtype: of the values.
        altered: how many pictures had to be altered to be of eight bits, by how.
    """

    pixels: Tensor
    targets: Tensor
    affine: Tensor
    dtype: torch.dtype = torch.float32
    altered: Mapping[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Every row's class."""
        return self.targets.cpu().numpy()

    @property
    def white(self) -> Tensor:
        """What the largest byte is as a value; of other values the largest of the first images."""
        scale, shift = self.affine
        if self.pixels.dtype == torch.uint8:
            top = torch.full_like(scale, LEVELS)
        else:
            top = self.pixels[:CHUNK].amax((0, 2, 3)).view_as(scale).to(scale)
        return torch.addcmul(shift, top, scale).to(self.dtype)

    def __len__(self) -> int:
        return len(self.targets)

    def widths(self, rows: Rows) -> Rows:
        """All images are of one size."""
        return np.ones(len(rows), dtype=np.int64)

    def to(self, device: torch.device, dtype: torch.dtype) -> PixelTable:
        """On a device, with values in the compute precision."""
        wide = torch.promote_types(dtype, torch.float32)
        affine = self.affine.to(device, wide)
        pixels, targets = self.pixels.to(device), self.targets.to(device)
        return PixelTable(pixels, targets, affine, dtype, self.altered)

    def gather(self, rows: Tensor) -> Batch:
        """The examples of the rows."""
        scale, shift = self.affine
        pixels = self.pixels.index_select(0, rows).to(self.affine.dtype)
        values = torch.addcmul(shift, pixels, scale).to(self.dtype)
        return Batch({"pixel_values": values}, self.targets.index_select(0, rows))


def pixel_table(
    task: TaskSection,
    rows: Dataset,
    labels: Any,
    processor: Any,
    channels: int,
    classes: Sequence[str] = (),
) -> PixelTable:
    """The images of a split, processed once for equal rows and processor.

    Args:
        task: names the column.
        rows: of the split.
        labels: one an image.
        processor: of the base.
        channels: 1 or 3, of the model.
        classes: their names, for a message.

    Raises:
        ScenarioError: for a value that is no image, or a processor that makes several sizes or
            is for another number of channels.
    """
    state = sorted((k, repr(v)) for k, v in processor.to_dict().items())
    by = type(processor).__name__, transformers.__version__, PIL.__version__
    key = (CACHE_VERSION, identity(rows, task.image), task.image, by, state, channels)

    def make(made: Path, beside: Path) -> None:
        affine = affine_of(processor, channels)
        if affine.shape[1] != channels:
            raise ScenarioError(
                f"task.base = {task.base!r}: its image processor is for {affine.shape[1]} "
                f"channels, the model takes {channels}"
            )
        images = _Images(task, rows, channels, lambda row: _class_of(labels[row], classes))
        if not _write(made, _values(task, images, processor), len(rows), affine):
            _write(made, _values(task, images, processor), len(rows), None)
        np.save(made / f"{COUNTS}.npy", [len(images.altered[what]) for what in ALTERED])

    found = made_once("pixels", key, make)
    affine = torch.from_numpy(found[AFFINE].copy())
    altered = dict(zip(ALTERED, found[COUNTS].tolist(), strict=True))
    targets = torch.as_tensor(np.asarray(labels))
    return PixelTable(mapped(found[PIXELS]), targets, affine, altered=altered)


def _class_of(label: Any, classes: Sequence[str]) -> str:
    return cut(classes[int(label)]) if classes else str(label)


def affine_of(processor: Any, channels: int) -> Tensor:
    """Scale and shift from byte to value, as a processor's settings say, (2, channels, 1, 1)."""

    def setting(switch: str, name: str, default: float) -> Tensor:
        value = getattr(processor, name, None) if getattr(processor, switch, False) else None
        wide = torch.as_tensor(default if value is None else value, dtype=torch.float64)
        return wide.reshape(-1)

    factor = setting("do_rescale", "rescale_factor", 1.0)
    mean = setting("do_normalize", "image_mean", 0.0)
    std = setting("do_normalize", "image_std", 1.0)
    affine = torch.stack(torch.broadcast_tensors(factor / std, -mean / std))
    return (affine.expand(2, channels) if affine.shape[1] == 1 else affine)[:, :, None, None]


class _Images:
    """The images of a split in eight bits, a chunk at a time.

    Attributes:
        altered: the rows of those that had to be altered, by how.
    """

    def __init__(
        self, task: TaskSection, rows: Dataset, channels: int, class_of: Callable[[int], str]
    ) -> None:
        self.task, self.rows, self.class_of = task, rows, class_of
        self.mode = "L" if channels == 1 else "RGB"
        self.cells = rows.select_columns([task.image]).cast_column(
            task.image, ImageFeature(decode=False)
        )
        self.altered: dict[str, set[int]] = {what: set() for what in ALTERED}

    def chunks(self) -> Iterator[tuple[int, list[NDArray[np.uint8]]]]:
        """The number of the first row, and (height, width, channels) of each image."""
        for start in range(0, len(self.cells), CHUNK):
            cells = self.cells[start : start + CHUNK][self.task.image]
            yield start, [self._one(start + place, cell) for place, cell in enumerate(cells)]

    def _one(self, row: int, cell: Any) -> NDArray[np.uint8]:
        try:
            image, done = picture_of(cell, self.mode)
        except Unreadable as error:
            raise ScenarioError(
                f"task.data = {self.task.data!r}: column {self.task.image!r} {error} in row "
                f"{own_row(self.rows, row)}{_named(cell)}, of class {self.class_of(row)}"
            ) from None
        for what in done:
            self.altered[what].add(row)
        return np.atleast_3d(np.asarray(image))


def _named(cell: Any) -> str:
    """The end of the file name of a cell, if it has one."""
    path = str((cell or {}).get("path") or "")
    return f" ({path if len(path) <= LONGEST else '...' + path[3 - LONGEST :]})" if path else ""


def _values(task: TaskSection, images: _Images, processor: Any) -> Iterator[Tensor]:
    """What the processor makes of the images, a chunk at a time."""
    shape = None
    for start, arrays in images.chunks():
        made = processor(arrays, return_tensors="pt", input_data_format="channels_last")
        values = made["pixel_values"].float()
        shape = shape or values.shape[1:]
        if values.shape[1:] != shape:
            raise ScenarioError(
                f"task.base = {task.base!r}: its image processor makes images of several sizes, "
                f"{tuple(shape)} and, from row {start} on, {tuple(values.shape[1:])}"
            )
        yield values


def _write(made: Path, chunks: Iterable[Tensor], rows: int, affine: Tensor | None) -> bool:
    """Write values; given what makes values of bytes, write bytes, or say that they are none."""
    start = 0
    with counting("images", rows) as done:
        for values in chunks:
            kept = values if affine is None else _bytes(values, affine)
            if kept is None:
                return False
            taken = kept.numpy()
            if not start:
                shape = (rows, *taken.shape[1:])
                out = np.lib.format.open_memmap(made / f"{PIXELS}.npy", "w+", taken.dtype, shape)
            out[start : start + len(taken)] = taken
            start += len(taken)
            done(len(taken))
    out.flush()
    if affine is None:
        affine = torch.tensor([1.0, 0.0]).repeat_interleave(out.shape[1])
    np.save(made / f"{AFFINE}.npy", affine.view(2, -1, 1, 1).numpy())
    return True


def _bytes(values: Tensor, affine: Tensor) -> Tensor | None:
    """The bytes that values were made of, if they were."""
    scale, shift = affine.float()
    levels = values.sub(shift).div_(scale).round_().clamp_(0, LEVELS)
    gap = float(levels.mul(scale).add_(shift).sub_(values).abs_().max())
    largest = float(torch.stack([shift, scale * LEVELS + shift]).abs().max())
    return levels.to(torch.uint8) if gap <= ROUNDING * max(1.0, largest) else None
