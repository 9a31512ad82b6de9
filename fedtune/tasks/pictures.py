"""One picture of eight bits out of what a cell holds, as somebody sees it, or why there is none."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from datasets import Image as ImageFeature
from PIL import Image, UnidentifiedImageError

from fedtune.errors import cut, first_line
from fedtune.tasks.stamps import is_file

DEEP = "pictures of 16 bits are scaled to 8"
CLEAR = "pictures that are transparent in parts are laid on white"
ALTERED = (DEEP, CLEAR)
WIDE_FORMATS = ("PNG", "PPM")  # whose 32-bit mode holds 16 bits
SCALE = 257.0  # from 16 bits to 8: 65535 / 255
OPAQUE, APART, SEEN = 255, 16, 0.1  # levels that differ visibly; the least share of a shape
BROKEN = (
    OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


class Unreadable(Exception):
    """A cell that is no picture, or one that cannot be told in eight bits."""


def picture_of(cell: Any, mode: str) -> tuple[Image.Image, list[str]]:
    """The picture of a cell in a mode of eight bits, whatever mode its column declares.

    Args:
        cell: `{bytes, path}`.
        mode: `L` or `RGB`.

    Returns:
        The picture, and what of `ALTERED` was done to it.

    Raises:
        Unreadable: if there is none.
    """
    if not isinstance(cell, dict) or (cell.get("bytes") is None and cell.get("path") is None):
        raise Unreadable("holds None")
    if cell.get("bytes") is None and not ("://" in cell["path"] or is_file(cell["path"])):
        raise Unreadable("there is no such file")
    try:
        return in_eight_bits(ImageFeature().decode_example(cell), mode)
    except UnidentifiedImageError:
        raise Unreadable("is no picture") from None
    except BROKEN as error:
        raise Unreadable(f"cannot be read ({cut(first_line(error))})") from None


def in_eight_bits(image: Image.Image, mode: str) -> tuple[Image.Image, list[str]]:
    """A picture in a mode of eight bits, and what of `ALTERED` was done to it.

    16 bits are scaled by what they can hold. What is transparent is seen on white; pictures that
    are opaque are converted as they are.

    Raises:
        Unreadable: for values without a known range, and for what white hides (`_check_seen`).
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in WIDE_FORMATS):
        values = np.asarray(image)
        scaled = np.rint(values.astype(np.float64) / SCALE).astype(np.uint8)
        clear = image.info.get("transparency")  # a value of 16 bits
        if clear is None or not (values == clear).any():
            return Image.fromarray(scaled).convert(mode), [DEEP]
        alpha = np.where(values == clear, 0, 255).astype(np.uint8)
        shaped = Image.merge("LA", [Image.fromarray(part) for part in (scaled, alpha)])
        return _on_white(shaped.convert("RGBA"), mode), [DEEP, CLEAR]
    if image.mode in ("I", "F"):
        raise Unreadable(f"has values of 32 bits (mode {image.mode}); save it with 8 or 16")
    if image.has_transparency_data:
        _check_key(image.info.get("transparency"))
        whole = image.convert("RGBA")
        if np.asarray(whole.getchannel("A")).min() < OPAQUE:
            return _on_white(whole, mode), [CLEAR]
    return image.convert(mode), []


def _check_key(clear: Any) -> None:
    """Refuse a transparent colour of 16 bits where the picture was read in eight."""
    if isinstance(clear, tuple) and max(clear) > OPAQUE:
        raise Unreadable("has a transparent colour of 16 bits; save it with an alpha channel")


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    """A transparent picture (RGBA) on white, in a mode."""
    white = Image.new("RGBA", image.size, "white")
    seen = Image.alpha_composite(white, image).convert("RGB").convert(mode)
    _check_seen(_differs(seen), image, mode)
    return seen


def _check_seen(seen: float, image: Image.Image, mode: str) -> None:
    """Refuse a picture of which white leaves less than a tenth.

    Its shape is the pixels that are opaque to some degree; where that is nearly the same
    everywhere, those whose colour is not white.

    Args:
        seen: share of pixels that differ from white, once laid on it.
        image: the picture itself, RGBA.
        mode: that it is told in.
    """
    alpha = np.asarray(image.getchannel("A")).astype(int)
    if np.ptp(alpha) >= APART:
        shape = float((alpha >= APART).mean())
    else:
        shape = _differs(image.convert("RGB").convert(mode))
    if seen < SEEN * shape:
        raise Unreadable(
            "is hidden by the white that transparent pictures are laid on (save it on another "
            "background)"
        )


def _differs(image: Image.Image) -> float:
    """The share of pixels that differ from white."""
    values = np.atleast_3d(np.asarray(image)).min(axis=2)
    return float((values.astype(int) <= OPAQUE - APART).mean())
