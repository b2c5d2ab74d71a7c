"""Runs, batches and images in the database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....runtime.command.text import shown
from ....runtime.errors import OptionError
from ...png import decode_png, encode_png
from .database import StoreError, transaction

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """What makes the images of a run what they are: all of it is the same to the last image.

    Attributes:
        bundle: its name.
        content_sha256: of what the bundle decodes with.
        options: of the run, with all defaults filled in, as JSON values.
        seed: of all noise.
        batch: images of a call.
        classes: number of classes; image i is of class i modulo that.
        shape: height and width of an image.
        backend: what ran the graphs.
        precision: of the graphs, as it was asked for.
        versions: of csd, Python, NumPy and the backend's library.
    """

    bundle: str
    content_sha256: str
    options: dict[str, Any]
    seed: int
    batch: int
    classes: int
    shape: tuple[int, int]
    backend: str
    precision: str | None
    versions: dict[str, str]

    def to_json(self) -> str:
        """Text that is the same for the same settings."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        values["shape"] = tuple(values["shape"])
        return cls(**values)

    def differences(self, other: Settings) -> list[str]:
        """What differs, as `cfg 3.0, was 1.0`, one entry each."""
        mine, theirs = _flat(asdict(self)), _flat(asdict(other))
        return [
            f"{name} {shown(mine.get(name), 40)}, was {shown(theirs.get(name), 40)}"
            for name in sorted(set(mine) | set(theirs))
            if mine.get(name) != theirs.get(name)
        ]


@dataclass(frozen=True)
class Run:
    """A run that is in the database.

    Attributes:
        key: in the database.
        name: that the user gave.
        settings: of its images.
        about: machine, threads, command line and what else is good to know, as JSON values.
        created: date and time, UTC.
    """

    key: int
    name: str
    settings: Settings
    about: dict[str, Any]
    created: str


@dataclass(frozen=True)
class Batch:
    """A call of a session.

    Attributes:
        first: number of its first image.
        count: images.
        seconds: that it took, of the device's clock where there is one.
        others: cores that other processes kept busy meanwhile, or None.
        stats: all of its statistics, as JSON values.
    """

    first: int
    count: int
    seconds: float
    others: float | None
    stats: dict[str, Any]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in flat.items()}


def find_run(connection: sqlite3.Connection, name: str) -> Run | None:
    """Return the run of a name, or None."""
    row = connection.execute("SELECT * FROM runs WHERE name = ?", (name,)).fetchone()
    return None if row is None else _run_of(row)


def need_run(connection: sqlite3.Connection, name: str) -> Run:
    """Return the run of a name.

    Raises:
        OptionError: there is none; it names those that there are.
    """
    run = find_run(connection, name)
    if run is None:
        names = [other.name for other in all_runs(connection)]
        there = f"give one of {', '.join(names[:12])}" if names else "make one with csd-eval run"
        raise OptionError(f"no run {shown(name)} in the database: {there}")
    return run


def all_runs(connection: sqlite3.Connection) -> list[Run]:
    """Return every run, in the order in which they were begun."""
    return [_run_of(row) for row in connection.execute("SELECT * FROM runs ORDER BY id")]


def add_run(
    connection: sqlite3.Connection, name: str, settings: Settings, about: dict[str, Any]
) -> Run:
    """Add a run, or return the one of this name, whose settings must be the same.

    Raises:
        OptionError: it has other settings.
    """
    with transaction(connection):
        old = find_run(connection, name)
        if old is None:
            connection.execute(
                "INSERT INTO runs (name, settings, about, created) VALUES (?, ?, ?, ?)",
                (name, settings.to_json(), json.dumps(about), _now()),
            )
    run = old or need_run(connection, name)
    if different := settings.differences(run.settings):
        raise OptionError(
            f"run {shown(name)} was made with other settings ({'; '.join(different[:3])}): give "
            "those, or another --name"
        )
    return run


def add_batch(
    connection: sqlite3.Connection, run: Run, batch: Batch, images: Images, labels: Sequence[int]
) -> None:
    """Store a batch and its images `[count, H, W, 3]`, all or none.

    What another process stored meanwhile stays: it is the same.
    """
    pngs = [encode_png(image) for image in images]
    numbers = range(batch.first, batch.first + batch.count)
    rows = [(run.key, n, label, png) for n, label, png in zip(numbers, labels, pngs, strict=True)]
    with transaction(connection):
        insert_batch(connection, run, batch)
        connection.executemany("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)", rows)


def insert_batch(connection: sqlite3.Connection, run: Run, batch: Batch) -> None:
    """Store what a batch took, within a transaction."""
    connection.execute(
        "INSERT OR IGNORE INTO batches VALUES (?, ?, ?, ?, ?, ?)",
        (run.key, batch.first, batch.count, batch.seconds, batch.others, json.dumps(batch.stats)),
    )


def batches_of(connection: sqlite3.Connection, run: Run) -> list[Batch]:
    """Return what the calls of a run took, by their images."""
    rows = connection.execute(
        "SELECT first, count, seconds, others, stats FROM batches WHERE run = ? ORDER BY first",
        (run.key,),
    )
    return [Batch(*row[:4], stats=json.loads(row[4])) for row in rows]


def numbers_of(connection: sqlite3.Connection, run: Run) -> list[int]:
    """Return the numbers of the images that are stored, ascending."""
    rows = connection.execute("SELECT number FROM images WHERE run = ? ORDER BY number", (run.key,))
    return [row[0] for row in rows]


def labels_of(connection: sqlite3.Connection, run: Run, numbers: Sequence[int]) -> list[int]:
    """Return the classes of images."""
    rows = connection.execute("SELECT number, label FROM images WHERE run = ?", (run.key,))
    known = dict(rows.fetchall())
    return [known[number] for number in numbers]


def images_of(connection: sqlite3.Connection, run: Run, numbers: Sequence[int]) -> Images:
    """Return images `[N, H, W, 3]`.

    Raises:
        StoreError: one is missing or damaged, or of another size than the run's.
    """
    return np.stack([_image(connection, run, number) for number in numbers])


def _image(connection: sqlite3.Connection, run: Run, number: int) -> Images:
    png = png_of(connection, run, number)
    try:
        image = decode_png(png)
    except Exception as error:  # Pillow's errors have no common base
        raise StoreError(
            f"image {number} of run {shown(run.name)} is damaged: restore a copy of the database"
        ) from error
    if image.shape[:2] != run.settings.shape:
        raise StoreError(
            f"image {number} of run {shown(run.name)} is {image.shape[1]} x {image.shape[0]}, the "
            f"run's are {run.settings.shape[1]} x {run.settings.shape[0]}: restore a copy of the "
            "database"
        )
    return image


def png_of(connection: sqlite3.Connection, run: Run, number: int) -> bytes:
    """Return the PNG of an image.

    Raises:
        StoreError: it is not there.
    """
    row = connection.execute(
        "SELECT png FROM images WHERE run = ? AND number = ?", (run.key, number)
    ).fetchone()
    if row is None:
        raise StoreError(f"run {shown(run.name)} has no image {number}: run csd-eval run again")
    return row[0]


def _run_of(row: tuple[Any, ...]) -> Run:
    key, name, settings, about, created = row
    try:
        return Run(key, name, Settings.from_json(settings), json.loads(about), created)
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"run {shown(name)} has settings that cannot be read: restore a copy of the database"
        ) from error


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
