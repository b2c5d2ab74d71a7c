"""Images: to bytes, sheets of several with captions, PNG files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .command.files import write_atomically
from .errors import BackendError, OptionError
from .libraries.imports import import_library

Images = NDArray[np.uint8]

# Key of the PNG's text chunk that says how its images were made, as JSON.
METADATA_KEY = "csd"
# Smaller images are enlarged in a grid, by a whole number.
GRID_SIDE = 112
GAP = 2
# What a sheet may hold.
MAX_PIXELS = 2**28
CAPTION_HEIGHT = 14
# A caption may be this wide, or as wide as its image.
CAPTION_WIDTH = 160


def load_pillow() -> None:
    """Import Pillow, which the first PNG does otherwise: after the work.

    Raises:
        BackendError: it cannot be imported, or there is too little memory for it.
    """
    for name in ("Image", "ImageDraw", "ImageFont", "PngImagePlugin"):
        import_library(f"PIL.{name}", kind=BackendError)


def to_uint8(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`[B, 3, H, W]` in [-1, 1] -> uint8 `[B, H, W, 3]`."""
    scaled = np.rint((np.clip(images, -1, 1) + 1) * 127.5)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))


def grid(images: Images, columns: int | None = None, gap: int = GAP) -> Images:
    """Lay images `[B, H, W, 3]` out on white, `[rows * (H + gap) + gap, ..., 3]`.

    Args:
        images: what to lay out, row by row.
        columns: images in a row, at most all of them; default as square as possible.
        gap: white pixels around each image.
    """
    count, height, width, _ = images.shape
    rows, columns = _layout(count, columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    out = np.full(shape, 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        out[top : top + height, left : left + width] = image
    return out


def _layout(count: int, columns: int | None) -> tuple[int, int]:
    """Rows and columns of a grid."""
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    return math.ceil(count / columns), columns


def _scale(count: int, side: int) -> int:
    """How often the pixels of images with that longer side are repeated in a sheet."""
    return 1 if count == 1 else max(1, GRID_SIDE // side)


def check_sheet(count: int, columns: int | None, side: int) -> None:
    """Check before the work that a sheet of all images can be made.

    Args:
        count: images.
        columns: images in a row at most, or None.
        side: pixels of an image, across and down.

    Raises:
        OptionError: it would be too large.
    """
    rows, across = _layout(count, columns)
    if rows * across * (side * _scale(count, side)) ** 2 > MAX_PIXELS:
        raise OptionError(
            f"{count} images of {side} x {side} make a picture of more than {MAX_PIXELS} pixels: "
            "give fewer --labels at a time, or --out-dir in place of --out"
        )


def sheet(
    images: Images, columns: int | None = None, captions: Sequence[str] | None = None
) -> Images:
    """One picture of all images: a single one as it is, several in a grid on white.

    A single image is neither enlarged nor framed. In a grid, images whose longer side is below
    `GRID_SIDE` are enlarged by the whole number that brings them nearest to it from below.

    Args:
        images: `[B, H, W, 3]`.
        columns: images in a row; default as square as possible.
        captions: what to write under each image, or None.

    Returns:
        uint8 `[H', W', 3]`.
    """
    single, scale = len(images) == 1, _scale(len(images), max(images.shape[1:3]))
    images = enlarged(images, scale)
    if captions is not None:
        images = _captioned(images, captions)
    return images[0] if single else grid(images, columns, GAP * scale)


def enlarged(images: Images, scale: int) -> Images:
    """Images `[..., H, W, 3]` with each pixel repeated `scale` times both ways."""
    return images.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _captioned(images: Images, captions: Sequence[str]) -> Images:
    """Images on white, in the middle, each with its caption below."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    # Pillow's small font has the letters of Western Europe.
    texts = [text.encode("latin-1", "replace").decode("latin-1") for text in captions]
    count, height, width, _ = images.shape
    widest = math.ceil(max(font.getlength(text) for text in texts)) + 2
    room = max(width, min(widest, CAPTION_WIDTH))
    out = np.full((count, height + CAPTION_HEIGHT, room, 3), 255, dtype=np.uint8)
    left = (room - width) // 2
    out[:, :height, left : left + width] = images
    for cell, text in zip(out, texts, strict=True):
        while text and font.getlength(text) > room:
            text = text[:-1]
        strip = Image.new("RGB", (room, CAPTION_HEIGHT), "white")
        start = (room - font.getlength(text)) / 2
        ImageDraw.Draw(strip).text((start, 1), text, fill="black", font=font)
        cell[height:] = np.asarray(strip)
    return out


def save_png(
    path: Path, image: Images, scale: int = 1, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write an image `[H, W, 3]`, whole or not at all.

    Args:
        path: where to.
        image: its pixels.
        scale: how often each pixel is repeated both ways.
        metadata: JSON values for the text chunk `METADATA_KEY`.

    Raises:
        OSError: as for `write_atomically`.
    """
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    if metadata is not None:
        text.add_text(METADATA_KEY, json.dumps(metadata))
    with write_atomically(path) as stream:
        Image.fromarray(enlarged(image, scale)).save(stream, format="PNG", pnginfo=text)
