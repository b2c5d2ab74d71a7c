"""IDX files, in which Fashion-MNIST and its like come; without PyTorch."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.command.text import plain
from ...runtime.errors import CsdError

# Where Debian's `dataset-fashion-mnist` puts its files (Xiao et al., arXiv 1708.07747).
DEFAULT_DATA = Path("/usr/share/datasets/fashion-mnist")


def read_idx(path: Path) -> NDArray[np.uint8]:
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
        reason = plain((isinstance(error, OSError) and error.strerror) or str(error), 120)
        raise CsdError(f"cannot read {path}: {reason}; install the data set again") from error


def read_split(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images `[N, 28, 28]` and labels `[N]` of `train` or `t10k`.

    Raises:
        CsdError: a file is missing or unreadable.
    """
    images, labels = (
        read_idx(folder / f"{split}-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1")
    )
    return images, labels
