"""PNG in memory: what a database keeps of an image, and what stands in a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def encode_png(image: Pixels) -> bytes:
    """A PNG of an image `[H, W, 3]`, in grey where it is that: a third of the bytes."""
    from PIL import Image

    grey = (image == image[..., :1]).all()
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if grey else image).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def decode_png(png: bytes) -> Pixels:
    """The image `[H, W, 3]` of a PNG."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def data_uri(png: bytes) -> str:
    """A PNG as the address of an image, so that a page asks for no file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
