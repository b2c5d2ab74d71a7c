"""Real images: what generated ones are held against, and how far real ones lie from each other."""

from __future__ import annotations

import hashlib
import sqlite3
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....models.training.idx import DEFAULT_DATA, read_split
from ....runtime.command.text import plain
from ....runtime.errors import CsdError, OptionError
from ..metrics.features import Images
from ..store.features import RealFeatures, keep_real_features, real_features
from .generate import Features

NONE = "none"
# Real images that generated ones are held against, unless there are fewer.
REFERENCE = 5000
TRAIN, TEST = "train", "test"
# What IDX files call the splits.
_IDX = {TRAIN: "train", TEST: "t10k"}
# Real images of zoo pairs.
_ZOO = {"fashion-mnist": DEFAULT_DATA}

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


class RealError(CsdError):
    """Real images cannot be read."""


@dataclass(frozen=True)
class RealImages:
    """Where real images are.

    Attributes:
        title: to call them by.
        sha256: of the files.
        read: returns images `[M, H, W]` or `[M, H, W, 3]` and classes `[M]` of a split.
    """

    title: str
    sha256: str
    read: Callable[[str], Split]


def find_real(given: str | None, zoo: str | None) -> RealImages | None:
    """Return the real images that were asked for, or those of a zoo pair.

    Args:
        given: a folder of IDX files, an archive of NumPy (`train_images`, `train_labels`,
            `test_images`, `test_labels`, bytes), `none`, or None.
        zoo: name of the pair, or None.

    Returns:
        None for `none`, and where nobody says where real images are.

    Raises:
        RealError: they are not there, or cannot be read.
    """
    if given == NONE or (given is None and zoo not in _ZOO):
        return None
    path = Path(given) if given is not None else _ZOO[str(zoo)]
    if given is None and not path.is_dir():
        raise RealError(
            f"no real images at {path}: apt-get install dataset-fashion-mnist, or give --real "
            f"PATH, or --real {NONE} to do without"
        )
    try:
        return _folder(path) if path.is_dir() else _archive(path)
    except FileNotFoundError as error:
        raise RealError(
            f"no real images at {error.filename or path}: give --real a folder with the IDX files "
            "of train and t10k, or a .npz"
        ) from error
    except OSError as error:
        raise RealError(f"cannot read real images at {path} ({error.strerror})"
                        ": give another --real") from error  # fmt: skip


def read_features(
    connection: sqlite3.Connection,
    real: RealImages,
    features: Features,
    split: str,
    count: int,
    shape: tuple[int, int],
) -> RealFeatures:
    """Features of the first real images of each class, computed once and kept in the database.

    Args:
        connection: to the database.
        real: where they are.
        features: the space.
        split: `train` or `test`.
        count: at most; of each class as many.
        shape: height and width of the generated images; smaller real ones get a black frame.

    Raises:
        RealError: they cannot be read, or are of another size.
    """
    part = f"{split}, {count} of {shape[0]} x {shape[1]}"
    kept = real_features(connection, features.space, real.sha256, part)
    if kept is not None:
        return kept
    images, labels = real.read(split)
    chosen = balanced(labels, count)
    made = RealFeatures(features.extract(framed(images[chosen], shape)), labels[chosen])
    keep_real_features(connection, features.space, real.sha256, part, real.title, made)
    return made


def balanced(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Places of the first images of each class, of all classes as many, `count` at most."""
    classes = np.unique(labels)
    each = max(1, min(count // len(classes), int(np.bincount(labels)[classes].min())))
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in classes]))


def framed(images: NDArray[np.uint8], shape: tuple[int, int]) -> Images:
    """Real images as `[M, H, W, 3]` of a size, in a black frame where they are smaller.

    Raises:
        RealError: they are larger, or no frame is as wide on both sides.
    """
    coloured = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)
    spare = [want - have for want, have in zip(shape, images.shape[1:3], strict=True)]
    if any(n < 0 or n % 2 for n in spare):
        raise RealError(
            f"real images are {images.shape[2]} x {images.shape[1]}, generated ones {shape[1]} x "
            f"{shape[0]}: give --real images of that size"
        )
    down, right = (n // 2 for n in spare)
    return np.pad(coloured, ((0, 0), (down, down), (right, right), (0, 0)))


def _folder(path: Path) -> RealImages:
    digest = hashlib.sha256()
    for split in _IDX.values():
        for name in ("images-idx3", "labels-idx1"):
            digest.update((path / f"{split}-{name}-ubyte.gz").read_bytes())

    def read(split: str) -> Split:
        images, labels = read_split(path, _IDX[split])
        return _checked(path, images, labels)

    return RealImages(path.name, digest.hexdigest(), read)


def _archive(path: Path) -> RealImages:
    def read(split: str) -> Split:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return _checked(path, arrays[f"{split}_images"], arrays[f"{split}_labels"])
        except (ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as e:
            raise RealError(
                f"cannot read {split}_images and {split}_labels of {path} "
                f"({plain(str(e), 100)}): give --real a .npz with both, or a folder of IDX files"
            ) from e

    if not path.is_file():
        path.stat()
        raise RealError(f"{path} is neither a folder nor a file: give another --real")
    found = RealImages(path.stem, hashlib.sha256(path.read_bytes()).hexdigest(), read)
    found.read(TEST)  # refused before any work
    return found


def _checked(path: Path, images: NDArray[Any], labels: NDArray[Any]) -> Split:
    fits = (
        images.dtype == np.uint8
        and images.ndim in (3, 4)
        and (images.ndim == 3 or images.shape[3] == 3)
        and labels.ndim == 1
        and len(labels) == len(images) > 0
        and labels.dtype.kind in "iu"
        and labels.min() >= 0
    )
    if not fits:
        raise RealError(
            f"{path} has images {images.dtype} {list(images.shape)} and labels "
            f"{list(labels.shape)}: give bytes [M, H, W] or [M, H, W, 3], and a class for each"
        )
    if labels.max() > 1_000_000:
        raise OptionError(f"{path} has a class {int(labels.max())}: number classes from 0 on")
    return images, labels.astype(np.int64)
