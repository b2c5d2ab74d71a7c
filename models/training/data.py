"""Fashion-MNIST from Debian's `dataset-fashion-mnist` (Xiao et al., arXiv 1708.07747)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .idx import DEFAULT_DATA, read_idx, read_split

__all__ = ["DEFAULT_DATA", "framed", "load_images", "read_idx"]


def load_images(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return `(images [N, 1, 28, 28] float32 in [-1, 1], labels [N] int64)`.

    Args:
        folder: where the four `*-ubyte.gz` files lie.
        split: `train` (60,000 images) or `t10k` (10,000).

    Raises:
        CsdError: a file is missing or unreadable.
    """
    pixels, labels = read_split(folder, split)
    images = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).unsqueeze(1)
    return images, torch.from_numpy(labels.astype(np.int64))


def framed(images: Tensor) -> Tensor:
    """Put `images [N, 1, 28, 28]` into a black frame of two pixels: `[N, 1, 32, 32]`.

    Halving 32 twice gives whole numbers. The models make framed images, and they stay framed.
    """
    return F.pad(images, (2, 2, 2, 2), value=-1.0)
