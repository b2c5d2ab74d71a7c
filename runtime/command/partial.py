"""Temporary neighbours of what is being written, and the end of those that nobody writes any more.

`x` is made as `.x.PID.NUMBER.partial` beside it and renamed when it is whole. Its writer holds a
lock on it (`flock`), which ends with the writer, however that ends: what SIGKILL left behind is
told from what is in use, even where a process number is used again or belongs to another container
or machine. Where a file system has no locks, nothing is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# A name may have 255 bytes, and the temporary one is longer.
_MAX_NAME = 180


@dataclass(frozen=True)
class Partial:
    """A temporary neighbour: where it lies, and the open descriptor that holds its lock."""

    path: Path
    descriptor: int


@contextmanager
def partial_file(path: Path, mode: int = 0o666) -> Generator[Partial]:
    """Make an empty locked temporary file beside `path`, open for reading and writing.

    Args:
        path: what it shall become, by `os.replace`.
        mode: permissions, less the umask.

    Raises:
        OSError: none can be made there.
    """
    partial = _make(path, lambda name: os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode))
    try:
        yield partial
    finally:
        partial.path.unlink(missing_ok=True)
        os.close(partial.descriptor)


@contextmanager
def partial_directory(out: Path) -> Generator[Path]:
    """Make a locked temporary directory beside `out`, whose parent is there.

    What SIGKILL left of others is removed first. The caller renames the directory when it is whole;
    where it is still there at the end, it is removed.

    Raises:
        OSError: none can be made there.
    """
    out = Path(os.path.abspath(out))  # "." and ".." have no neighbours
    remove_abandoned(out)
    partial = _make(out, _new_directory)
    try:
        yield partial.path
    finally:
        shutil.rmtree(partial.path, ignore_errors=True)
        os.close(partial.descriptor)


@contextmanager
def only_writer(folder: Path) -> Generator[bool]:
    """Hold the lock of a folder that is changed in place: yields whether it could be had.

    A folder that was a `partial_directory` is its maker's until that has ended. Where a file system
    has no locks, everybody gets one.

    Raises:
        OSError: the folder is not there, or cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _lock(descriptor) is not False
    finally:
        os.close(descriptor)


def remove_abandoned(out: Path) -> tuple[Path, ...]:
    """Remove temporary files and directories beside `out` whose writer is dead.

    Returns:
        Those that are left, because somebody writes them, or nobody can say.
    """
    out = Path(os.path.abspath(out))
    name = re.compile(rf"\.{re.escape(_stem(out))}\.(\d{{1,19}})\.\d{{1,20}}\.partial")
    try:
        found = [match for entry in os.listdir(out.parent) if (match := name.fullmatch(entry))]
    except OSError:
        return ()
    left: list[Path] = []
    for match in found:
        path = out.parent / match[0]
        if (_lives(int(match[1])) or not _remove_unlocked(path)) and path.exists():
            left.append(path)
    return tuple(left)


def _stem(path: Path) -> str:
    """What the names of a path's temporary neighbours begin with."""
    name = os.fsencode(path.name)
    if len(name) <= _MAX_NAME:
        return path.name
    own = hashlib.sha256(name).hexdigest()[:16]
    return f"{os.fsdecode(name[: _MAX_NAME - 20]).encode('ascii', 'replace').decode()}-{own}"


def _make(path: Path, make: Callable[[Path], int]) -> Partial:
    for number in itertools.count(threading.get_ident()):
        partial = path.with_name(f".{_stem(path)}.{os.getpid()}.{number}.partial")
        try:
            descriptor = make(partial)
        except FileExistsError:
            continue
        # Whoever removes abandoned ones may have come between the making and the lock.
        if _lock(descriptor) is not False and _is_at(descriptor, partial):
            return Partial(partial, descriptor)
        os.close(descriptor)
    raise AssertionError("there is always another number")


def _new_directory(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _lock(descriptor: int) -> bool | None:
    """Lock a file: whether that could be done, or None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _lives(number: int) -> bool:
    """Whether another process of this number runs here. In a container ours may be the last's."""
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _remove_unlocked(path: Path) -> bool:
    """Remove a file or directory, if its lock can be had."""
    with suppress(OSError):
        kind = path.lstat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            return False
        access = os.O_RDONLY if stat.S_ISDIR(kind) else os.O_RDWR
        descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not _lock(descriptor) or not _is_at(descriptor, path):
                return False
            if stat.S_ISDIR(kind):
                shutil.rmtree(path)
            else:
                path.unlink()
            return True
        finally:
            os.close(descriptor)
    return False
