"""Files that are either written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def write_atomically(path: Path) -> Generator[BinaryIO]:
    """Open a temporary neighbour of `path` for writing and rename it at the end.

    Raises:
        OSError: the directory is missing or not writable, or the disk is full; `path` is then as
            it was before.
    """
    path = Path(os.path.abspath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # Threads of one process may write the same file.
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
        os.replace(partial, path)
    except OSError as error:
        if error.filename == str(partial):
            error.filename = str(path)  # the name that the user gave
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all.

    Raises:
        OSError: as for `write_atomically`.
    """
    with write_atomically(path) as stream:
        stream.write((json.dumps(value, indent=1) + "\n").encode())


def check_writable(path: Path) -> None:
    """Fail now rather than after minutes of work.

    Raises:
        OSError: a file cannot be created at `path`.
    """
    path = Path(os.path.abspath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    probe = path.with_name(f".{path.name}.probe")
    try:
        with write_atomically(probe):
            pass
    except OSError as error:
        error.filename = str(path)
        raise
    probe.unlink()
