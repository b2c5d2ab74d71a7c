"""Features in the database: of the images of runs, and of real images."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....runtime.arrays import Float32
from ....runtime.command.text import shown
from ....runtime.errors import OptionError
from ..metrics.features import FeatureSpace, Images, Outputs
from .database import StoreError, transaction
from .runs import Run, images_of, numbers_of

# Images between two that are stored.
CHUNK = 256
Extract = Callable[[Images], Outputs]


@dataclass(frozen=True)
class Space:
    """A feature space that the database knows.

    Attributes:
        key: in the database.
        title: to call it by.
        width: F.
        classes: of the logits; 0 where there are none.
    """

    key: int
    title: str
    width: int
    classes: int


def find_space(connection: sqlite3.Connection, sha256: str) -> Space | None:
    """Return the space of a graph and its settings, or None where nothing is stored in it."""
    row = connection.execute(
        "SELECT id, title, width, classes FROM spaces WHERE sha256 = ?", (sha256,)
    ).fetchone()
    return None if row is None else Space(*row)


def add_space(connection: sqlite3.Connection, space: FeatureSpace, outputs: Outputs) -> Space:
    """Add the space that outputs are in, or return it.

    Raises:
        OptionError: its features have another length than those that are stored.
    """
    width, classes = outputs.features.shape[1], outputs.logits.shape[1]
    connection.execute(
        "INSERT OR IGNORE INTO spaces (sha256, title, width, classes) VALUES (?, ?, ?, ?)",
        (space.sha256, space.title, width, classes),
    )
    known = find_space(connection, space.sha256)
    assert known is not None
    if (known.width, known.classes) != (width, classes):
        raise OptionError(
            f"{space.path} gives {width} features and {classes} logits, those in the database have "
            f"{known.width} and {known.classes}: give another --db"
        )
    return known


def fill_features(
    connection: sqlite3.Connection, run: Run, space: FeatureSpace, extract: Extract
) -> None:
    """Compute and store the features that a run's images lack.

    Raises:
        StoreError: an image is damaged.
        NumericsError: a feature is not finite.
    """
    known = find_space(connection, space.sha256)
    done = set() if known is None else set(_stored_numbers(connection, run, known))
    lacking = [number for number in numbers_of(connection, run) if number not in done]
    for start in range(0, len(lacking), CHUNK):
        numbers = lacking[start : start + CHUNK]
        outputs = extract(images_of(connection, run, numbers))
        with transaction(connection):
            key = add_space(connection, space, outputs).key
            connection.executemany(
                "INSERT OR IGNORE INTO features VALUES (?, ?, ?, ?, ?)",
                [
                    (key, run.key, number, features.tobytes(), logits.tobytes())
                    for number, features, logits in zip(
                        numbers, outputs.features, outputs.logits, strict=True
                    )
                ],
            )


def features_of(
    connection: sqlite3.Connection, run: Run, space: Space, numbers: Sequence[int]
) -> Outputs:
    """Return the features of images, in the order of `numbers`.

    Raises:
        StoreError: some are missing, or of another length than the space's.
    """
    rows = connection.execute(
        "SELECT number, features, logits FROM features WHERE space = ? AND run = ?",
        (space.key, run.key),
    )
    known = {number: (features, logits) for number, features, logits in rows}
    if lacking := [number for number in numbers if number not in known]:
        raise StoreError(
            f"image {lacking[0]} of run {shown(run.name)} has no features in {shown(space.title)}: "
            "run csd-eval run again"
        )
    what = f"run {shown(run.name)}"
    return Outputs(
        _rows([known[n][0] for n in numbers], space.width, what),
        _rows([known[n][1] for n in numbers], space.classes, what),
    )


def _stored_numbers(connection: sqlite3.Connection, run: Run, space: Space) -> list[int]:
    rows = connection.execute(
        "SELECT number FROM features WHERE space = ? AND run = ?", (space.key, run.key)
    )
    return [row[0] for row in rows]


@dataclass(frozen=True)
class RealFeatures:
    """Real images of a split, as a graph sees them.

    Attributes:
        outputs: of the graph.
        labels: classes `[M]`.
    """

    outputs: Outputs
    labels: NDArray[np.int64]


def real_features(
    connection: sqlite3.Connection, space: FeatureSpace, sha256: str, split: str
) -> RealFeatures | None:
    """Return stored features of real images, or None.

    Args:
        connection: to the database.
        space: of the features.
        sha256: of the data.
        split: which part of them.

    Raises:
        StoreError: they are damaged.
    """
    known = find_space(connection, space.sha256)
    if known is None:
        return None
    row = connection.execute(
        "SELECT features, logits, labels FROM reals WHERE space = ? AND sha256 = ? AND split = ?",
        (known.key, sha256, split),
    ).fetchone()
    if row is None:
        return None
    labels = np.frombuffer(row[2], dtype="<i8").astype(np.int64)
    what = f"real images ({split})"
    features = _rows([row[0]], known.width * len(labels), what).reshape(len(labels), -1)
    logits = _rows([row[1]], known.classes * len(labels), what).reshape(len(labels), -1)
    return RealFeatures(Outputs(features, logits), labels)


def keep_real_features(
    connection: sqlite3.Connection, space: FeatureSpace, sha256: str, split: str, title: str,
    real: RealFeatures,
) -> None:  # fmt: skip
    """Store features of real images."""
    with transaction(connection):
        key = add_space(connection, space, real.outputs).key
        connection.execute(
            "INSERT OR REPLACE INTO reals VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                key, sha256, split, title, real.outputs.features.tobytes(),
                real.outputs.logits.tobytes(), real.labels.astype("<i8").tobytes(),
            ),
        )  # fmt: skip


def _rows(blobs: Sequence[bytes], width: int, what: str) -> Float32:
    wrong = [blob for blob in blobs if len(blob) != 4 * width]
    if wrong:
        raise StoreError(
            f"features of {what} have {len(wrong[0]) // 4} values, the space has {width}: the "
            "database is damaged, restore a copy"
        )
    return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), width)
