"""One picture of eight bits out of what a cell holds, as somebody sees it, or why there is none."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from datasets import Image as ImageFeature
from PIL import Image, UnidentifiedImageError

from fedtune.errors import first_line

DEEP = "pictures of 16 bits are scaled to 8"
CLEAR = "pictures that are transparent in parts are laid on white"
ALTERED = (DEEP, CLEAR)
WIDE_FORMATS = ("PNG", "PPM")  # whose 32-bit mode holds 16 bits
SCALE = 257.0  # from 16 bits to 8: 65535 / 255
BROKEN = (
    OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


class Unreadable(Exception):
    """A cell that is no picture, or one that cannot be told in eight bits."""


def picture_of(cell: Any, feature: ImageFeature, mode: str) -> tuple[Image.Image, list[str]]:
    """The picture of a cell in a mode of eight bits.

    Args:
        cell: `{bytes, path}`.
        feature: of the column, which decodes it.
        mode: `L` or `RGB`.

    Returns:
        The picture, and what of `ALTERED` was done to it.

    Raises:
        Unreadable: if there is none.
    """
    if not isinstance(cell, dict) or (cell.get("bytes") is None and cell.get("path") is None):
        raise Unreadable("holds None")
    try:
        return in_eight_bits(feature.decode_example(cell), mode)
    except UnidentifiedImageError:
        raise Unreadable("is no picture") from None
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except BROKEN as error:
        raise Unreadable(f"cannot be read ({first_line(error)})") from None


def in_eight_bits(image: Image.Image, mode: str) -> tuple[Image.Image, list[str]]:
    """A picture in a mode of eight bits, and what of `ALTERED` was done to it.

    16 bits are scaled by what they can hold. What is transparent is seen on white; pictures that
    are opaque are converted as they are.

    Raises:
        Unreadable: for values without a known range, and for a shape that white hides.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in WIDE_FORMATS):
        values = np.rint(np.asarray(image).astype(np.float64) / SCALE)
        return Image.fromarray(values.astype(np.uint8)).convert(mode), [DEEP]
    if image.mode in ("I", "F"):
        raise Unreadable(f"has values of 32 bits (mode {image.mode}); save it with 8 or 16")
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        alpha = np.asarray(whole.getchannel("A"))
        if alpha.min() < 255:
            return _on_white(whole, bool(np.ptp(alpha))).convert(mode), [CLEAR]
    return image.convert(mode), []


def _on_white(image: Image.Image, shaped: bool) -> Image.Image:
    """A transparent picture on white; `shaped` if some of it is more transparent than the rest."""
    seen = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if shaped and not np.ptp(np.asarray(seen), axis=(0, 1)).any():
        raise Unreadable("is white on nothing; its shape is not seen without a background")
    return seen
