"""Images as a base's processor makes them, kept on disk as bytes and memory-mapped.

A processor ends with rescaling and normalising, value = scale · byte + shift. Where that holds for
every image of a split the bytes are kept, a quarter of the memory, and the rest is done batch by
batch; else the values are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from datasets import Dataset
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedtune.console import counting
from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks.base import Batch, Rows
from fedtune.tasks.cache import identity, made_once, mapped
from fedtune.tasks.labels import check_values

CACHE_VERSION = 1
CHUNK = 64
LEVELS, ROUNDING = 255, 1e-6
PIXELS, AFFINE = "pixels", "affine"


@dataclass(frozen=True)
class PixelTable:
    """A split of images of one size.

    Attributes:
        pixels: uint8, or float32 where bytes do not do, (rows, channels, height, width).
        targets: (rows,) classes.
        affine: scale and shift of each channel, (2, channels, 1, 1).
        dtype: of the values.
    """

    pixels: Tensor
    targets: Tensor
    affine: Tensor
    dtype: torch.dtype = torch.float32

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
        return PixelTable(self.pixels.to(device), self.targets.to(device), affine, dtype)

    def gather(self, rows: Tensor) -> Batch:
        """The examples of the rows."""
        scale, shift = self.affine
        pixels = self.pixels.index_select(0, rows).to(self.affine.dtype)
        values = torch.addcmul(shift, pixels, scale).to(self.dtype)
        return Batch({"pixel_values": values}, self.targets.index_select(0, rows))


def pixel_table(
    task: TaskSection, rows: Dataset, labels: Any, processor: Any, channels: int
) -> PixelTable:
    """The images of a split, processed once for equal rows and processor.

    Args:
        task: names the column.
        rows: of the split.
        labels: one an image.
        processor: of the base.
        channels: 1 or 3, of the model.

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
        if not _write(made, _values(task, rows, processor, channels), len(rows), affine):
            _write(made, _values(task, rows, processor, channels), len(rows), None)

    found = made_once("pixels", key, make)
    affine = torch.from_numpy(found[AFFINE].copy())
    return PixelTable(mapped(found[PIXELS]), torch.as_tensor(np.asarray(labels)), affine)


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


def _values(task: TaskSection, rows: Dataset, processor: Any, channels: int) -> Iterable[Tensor]:
    """What the processor makes of the images, a chunk at a time."""
    mode, column = "L" if channels == 1 else "RGB", task.image
    only, shape = rows.select_columns([column]), None
    for start in range(0, len(only), CHUNK):
        images = only[start : start + CHUNK][column]
        check_values(task, column, images, Image.Image, start)
        arrays = [np.atleast_3d(np.asarray(image.convert(mode))) for image in images]
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
