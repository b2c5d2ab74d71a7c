"""Tables of the database, and how a file of an older version is brought up to date.

| table | holds |
| --- | --- |
| `runs` | name, settings (what makes the images what they are) and what is known beside, as JSON |
| `batches` | what each call of a session took: seconds, statistics, load of the machine |
| `images` | number in the seed's noise, class, PNG |
| `spaces` | feature spaces: SHA-256 of graph and preprocessing, widths |
| `features` | of each image in a space: features and logits, float32 |
| `reals` | the same of a split of real images, all in one row, with their classes |
"""

from __future__ import annotations

import sqlite3

# `csde` in bytes: tells our files from other SQLite files.
APPLICATION_ID = 0x63736465

# Entry i brings a file from version i to i + 1. What was released is not changed any more.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, settings TEXT NOT NULL,
        about TEXT NOT NULL, created TEXT NOT NULL);
    CREATE TABLE batches (
        run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, first INTEGER NOT NULL,
        count INTEGER NOT NULL, seconds REAL NOT NULL, others REAL, stats TEXT NOT NULL,
        PRIMARY KEY (run, first));
    CREATE TABLE images (
        run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, number INTEGER NOT NULL,
        label INTEGER NOT NULL, png BLOB NOT NULL, PRIMARY KEY (run, number));
    CREATE TABLE spaces (
        id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, title TEXT NOT NULL,
        width INTEGER NOT NULL, classes INTEGER NOT NULL);
    CREATE TABLE features (
        space INTEGER NOT NULL REFERENCES spaces ON DELETE CASCADE,
        run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, number INTEGER NOT NULL,
        features BLOB NOT NULL, logits BLOB NOT NULL, PRIMARY KEY (space, run, number));
    CREATE TABLE reals (
        space INTEGER NOT NULL REFERENCES spaces ON DELETE CASCADE, sha256 TEXT NOT NULL,
        split TEXT NOT NULL, title TEXT NOT NULL, features BLOB NOT NULL, logits BLOB NOT NULL,
        labels BLOB NOT NULL, PRIMARY KEY (space, sha256, split));
    """,
)


def version_of(connection: sqlite3.Connection) -> int:
    """Version of a file's tables; 0 is an empty file."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables up to date, each step whole or not at all.

    Args:
        connection: in autocommit mode, to a file of ours or an empty one.
    """
    for version in range(version_of(connection), len(MIGRATIONS)):
        # A script commits what is open, so the step begins and ends in it.
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[version]} PRAGMA user_version = {version + 1}; "
            f"PRAGMA application_id = {APPLICATION_ID}; COMMIT;"
        )
