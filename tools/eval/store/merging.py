"""Bringing the runs of one database into another."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from ....runtime.command.text import shown
from ....runtime.errors import OptionError
from .database import transaction
from .runs import Run, add_run, all_runs, batches_of, insert_batch

# Images that are copied in one transaction.
CHUNK = 500


def check_mergeable(sources: Sequence[tuple[Path, sqlite3.Connection]]) -> None:
    """Check that runs of one name have the same settings in all databases.

    Raises:
        OptionError: they have not; it names what differs.
    """
    seen: dict[str, tuple[Path, Run]] = {}
    for path, connection in sources:
        for run in all_runs(connection):
            other, first = seen.setdefault(run.name, (path, run))
            if different := run.settings.differences(first.settings):
                raise OptionError(
                    f"run {shown(run.name)} of {path} has other settings than that of {other} "
                    f"({'; '.join(different[:3])}): give runs of other settings other names"
                )


def merge_runs(target: sqlite3.Connection, source: sqlite3.Connection) -> dict[str, int]:
    """Copy all runs that `check_mergeable` let pass.

    Returns:
        Images that were added, by the run's name.
    """
    return {run.name: _merge_run(target, source, run) for run in all_runs(source)}


def _merge_run(target: sqlite3.Connection, source: sqlite3.Connection, run: Run) -> int:
    own = add_run(target, run.name, run.settings, run.about)
    spaces = {
        key: _same_space(target, row)
        for key, *row in source.execute("SELECT id, sha256, title, width, classes FROM spaces")
    }
    before = _count(target, own)
    batches = batches_of(source, run)
    for start in range(0, len(batches), CHUNK):
        with transaction(target):
            for batch in batches[start : start + CHUNK]:
                numbers = (run.key, batch.first, batch.first + batch.count)
                insert_batch(target, own, batch)
                rows = source.execute(
                    "SELECT number, label, png FROM images "
                    "WHERE run = ? AND number >= ? AND number < ?", numbers,
                )  # fmt: skip
                target.executemany(
                    "INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)",
                    ((own.key, *row) for row in rows),
                )
                rows = source.execute(
                    "SELECT space, number, features, logits FROM features "
                    "WHERE run = ? AND number >= ? AND number < ?", numbers,
                )  # fmt: skip
                target.executemany(
                    "INSERT OR IGNORE INTO features VALUES (?, ?, ?, ?, ?)",
                    ((spaces[space], own.key, *row) for space, *row in rows),
                )
    return _count(target, own) - before


def _same_space(target: sqlite3.Connection, row: Sequence[object]) -> int:
    target.execute(
        "INSERT OR IGNORE INTO spaces (sha256, title, width, classes) VALUES (?, ?, ?, ?)",
        tuple(row),
    )
    (key,) = target.execute("SELECT id FROM spaces WHERE sha256 = ?", (row[0],)).fetchone()
    return int(key)


def _count(connection: sqlite3.Connection, run: Run) -> int:
    return int(
        connection.execute("SELECT count(*) FROM images WHERE run = ?", (run.key,)).fetchone()[0]
    )
