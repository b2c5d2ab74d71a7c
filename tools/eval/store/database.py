"""Opening the database, and what its errors mean to a user."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from ....runtime.command.files import check_outputs, is_stream
from ....runtime.command.text import plain
from ....runtime.errors import CsdError, OptionError
from .schema import APPLICATION_ID, MIGRATIONS, migrate, version_of

DEFAULT_DATABASE = Path("csd-eval.db")
# Another process of ours holds the lock for the time of a batch's insertion.
LOCK_SECONDS = 20.0
# SQLite keeps these two beside a file that is open.
BESIDE = ("-wal", "-shm")
_FULL = ("disk is full", "disk i/o error")
_DAMAGED = ("malformed", "not a database", "corrupt", "file is encrypted")


class StoreError(CsdError):
    """The database cannot be read or written."""


def check_database(path: Path, inside: dict[str, Path] | None = None) -> None:
    """Check before any work that a database can be made or written at a path.

    Raises:
        OptionError: it is a device, a pipe or stdout, or lies in what is read.
        OSError: it cannot be written.
    """
    check_outputs({"--db": path}, inside)
    if is_stream(path):
        raise OptionError(f"--db {path} is no regular file: give the path of one")


@contextmanager
def open_database(path: Path, *, create: bool = False) -> Generator[sqlite3.Connection]:
    """Open a database, its tables brought up to date; every error of SQLite is told.

    Args:
        path: of the file.
        create: whether it may be made.

    Raises:
        StoreError: it is missing, locked, damaged, another program's or a newer csd's, the disk is
            full or may not be written to; nothing of what was stored is lost.
    """
    with told(path):
        there = _kind(path)
        if not there and not create:
            raise StoreError(f"no database at {path}: make one with csd-eval run --db {path}")
        # A path may hold characters that a URI gives a meaning.
        connection = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
        try:
            _check_ours(connection, path)
            # Readers and a writer do not wait for each other; where a file system has no shared
            # memory SQLite stays with its journal.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            migrate(connection)
            yield connection
        finally:
            connection.close()


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """All that is written inside, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):  # a full disk has rolled back already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def told(path: Path) -> Generator[None]:
    """Turn errors of SQLite into one line each.

    Raises:
        StoreError: whatever SQLite raised.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"database {path}: {_meaning(path, str(error))}") from error


def _kind(path: Path) -> bool:
    """Whether a file is there; SQLite's own message for a folder or a link in a circle is poor."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    if not path.is_file():
        raise StoreError(f"database {path} is no file: give the path of one")
    return True


def _check_ours(connection: sqlite3.Connection, path: Path) -> None:
    version = version_of(connection)
    own = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and not own:
        raise StoreError(f"{path} is another program's database: give another --db")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"database {path} has version {version}, this csd reads up to {len(MIGRATIONS)}: "
            "upgrade csd, or give another --db"
        )


def _meaning(path: Path, said: str) -> str:
    text = said.lower()
    if "locked" in text or "busy" in text:
        return "another process holds it: wait for that one to end, or give another --db"
    if any(words in text for words in _FULL):
        return "the disk is full: free some space and run the same command, which goes on"
    if any(words in text for words in _DAMAGED):
        return f"it is damaged ({plain(said, 80)}): restore a copy, or give another --db"
    if "readonly" in text or "read-only" in text:
        return "it may not be written to: choose a path that you may write to"
    if "unable to open" in text:
        folder = path.parent
        if not folder.is_dir():
            return f"{folder} is no folder: check the path"
        reason = "may not be read" if path.exists() and not os.access(path, os.R_OK) else "refused"
        return f"the system does not open it ({reason}): choose a path that you may write to"
    return f"{plain(said, 120)}: check the file, or give another --db"
