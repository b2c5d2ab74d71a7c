"""Fashion-MNIST from Debian's `dataset-fashion-mnist` (Xiao et al., arXiv 1708.07747)."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.errors import CsdError

DEFAULT_DATA = Path("/usr/share/datasets/fashion-mnist")


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes.

    Raises:
        CsdError: the file is missing or is not of that format.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
        _, kind, ndim = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{ndim}I", raw[4 : 4 + 4 * ndim])
        if kind != 8:
            raise ValueError(f"element type {kind} is not unsigned byte")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except FileNotFoundError as error:
        raise CsdError(
            f"no data at {path}: apt-get install dataset-fashion-mnist, or give --data DIR"
        ) from error
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise CsdError(f"cannot read {path}: {error}; install the data set again") from error


def load_images(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return `(images [N, 1, 28, 28] float32 in [-1, 1], labels [N] int64)`.

    Args:
        folder: where the four `*-ubyte.gz` files lie.
        split: `train` (60,000 images) or `t10k` (10,000).

    Raises:
        CsdError: a file is missing or unreadable.
    """
    pixels = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    images = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).unsqueeze(1)
    return images, torch.from_numpy(labels.astype(np.int64))


def framed(images: Tensor) -> Tensor:
    """Put `images [N, 1, 28, 28]` into a black frame of two pixels: `[N, 1, 32, 32]`.

    Halving 32 twice gives whole numbers. The models make framed images, and they stay framed.
    """
    return F.pad(images, (2, 2, 2, 2), value=-1.0)
