"""Images: to bytes, grids, PNG files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .files import write_atomically


def to_uint8(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`[B, 3, H, W]` in [-1, 1] -> uint8 `[B, H, W, 3]`."""
    scaled = np.rint((np.clip(images, -1, 1) + 1) * 127.5)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))


def grid(images: NDArray[np.uint8], columns: int | None = None, gap: int = 2) -> NDArray[np.uint8]:
    """Lay images `[B, H, W, 3]` out on white, `[rows * (H + gap) + gap, ..., 3]`.

    Args:
        images: what to lay out, row by row.
        columns: images in a row; default as square as possible.
        gap: white pixels around each image.
    """
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    out = np.full(shape, 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        out[top : top + height, left : left + width] = image
    return out


def save_png(path: Path, image: NDArray[np.uint8], scale: int = 1) -> None:
    """Write an image `[H, W, 3]`, each pixel enlarged `scale` times."""
    from PIL import Image

    big = image.repeat(scale, axis=0).repeat(scale, axis=1)
    with write_atomically(path) as stream:
        Image.fromarray(big).save(stream, format="PNG")
