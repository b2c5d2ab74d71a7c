"""The one place that writes files: whole or not at all, and to where a path leads.

Symbolic links are followed. A regular file is replaced by one of the same mode, owner and group;
one that cannot be (it has several names, another owner, or is a mount of its own) gets its new
content in place, once all of it is there. What is no regular file (a device, a FIFO, `/dev/stdout`,
`/dev/fd/3`) is written to, and `-` is stdout.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import io
import itertools
import json
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import OptionError, WriteRefusedError
from .partial import Partial, only_writer, partial_directory, partial_file, remove_abandoned

__all__ = [
    "STDOUT",
    "check_apart",
    "check_outputs",
    "check_outside",
    "check_writable",
    "is_stdout",
    "only_writer",
    "output_path",
    "partial_directory",
    "remove_abandoned",
    "write_atomically",
    "write_json",
]

STDOUT = Path("-")
# A directory in which no file can be made.
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
_MAX_LINKS = 40
# Files of an input that an output is compared with. A bundle has less than a hundred.
_MAX_FILES = 10_000


@contextmanager
def write_atomically(path: Path) -> Generator[BinaryIO]:
    """Open what shall become the content of `path`, and put it there at the end.

    Args:
        path: a file that is there or not, a link to one, a device, a FIFO, or `STDOUT`.

    Raises:
        OSError: the directory is missing or not writable, or the disk is full; a regular file is
            then as it was before.
    """
    with _told_as(path), ExitStack() as stack:
        place = _Place.of(path)
        place.check()
        partial = None if place.regular is None else _neighbour(place, place.regular, stack)
        if partial is None or place.regular is None:
            content = io.BytesIO()
            yield content
            place.write(content.getbuffer())
            return
        with open(partial.descriptor, "wb", closefd=False) as stream:
            yield stream
        _synchronise(partial.descriptor)
        try:
            os.replace(partial.path, place.regular)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            place.write(partial.path.read_bytes())  # a file that is a mount of its own


def write_outputs(writes: Iterable[tuple[Path | None, Callable[[Path], None]]]) -> None:
    """Write files, those first that no reader can spoil by going away.

    Args:
        writes: of each file its path, or None where it was not asked for, and what writes it.
    """
    wanted = [(path, write) for path, write in writes if path is not None]
    for path, write in sorted(wanted, key=lambda item: is_stream(item[0])):
        write(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON.

    Raises:
        OSError: as for `write_atomically`.
    """
    with write_atomically(path) as stream:
        stream.write((json.dumps(value, indent=1) + "\n").encode())


def check_writable(path: Path) -> None:
    """Fail now rather than after minutes of work. Nothing is written, opened or made at `path`.

    Raises:
        OSError: `write_atomically` could not write there.
    """
    with _told_as(path), ExitStack() as stack:
        place = _Place.of(path)
        place.check()
        if place.regular is not None:
            _neighbour(place, place.regular, stack)


def check_outputs(
    outputs: Mapping[str, Path | None], inside: Mapping[str, Path] | None = None
) -> None:
    """Check before any work that outputs can be written, and are neither each other nor an input.

    Names of one file count as one: links, `./` and `..`, and stdout where it is redirected.

    Args:
        outputs: the path of each option that was given, as `{"--out": path}`.
        inside: folders and files that are read, by what to call them, as `{"the bundle": folder}`.

    Raises:
        OptionError: two options name one file, or one names a part of what is read.
        OSError: one cannot be written.
    """
    places = {option: _Place.of(path) for option, path in outputs.items() if path is not None}
    for (one, first), (other, second) in itertools.combinations(places.items(), 2):
        if first.same(second):
            raise OptionError(
                f"{one} {first.given} and {other} {second.given} are one file: give two"
            )
    for option, place in places.items():
        for name, source in (inside or {}).items():
            if place.belongs_to(source):
                raise OptionError(
                    f"{option} {place.given} belongs to {name} {source}: give another path"
                )
    for place in places.values():
        check_writable(place.given)


def check_outside(option: str, folder: Path, inside: Mapping[str, Path]) -> None:
    """Check that a folder of outputs is not one that is read, nor lies in one, by any name.

    Args:
        option: that names the folder.
        folder: which need not be there.
        inside: folders and files that are read, by what to call them, as `{"the bundle": folder}`.

    Raises:
        OptionError: it is, or does.
    """
    place = Path(os.path.realpath(folder))
    for name, source in inside.items():
        root = Path(os.path.realpath(source))
        if root.is_dir() and (place == root or root in place.parents):
            raise OptionError(f"{option} {folder} belongs to {name} {source}: give another folder")


def check_apart(
    option: str, folder: Path, names: Sequence[str], outputs: Mapping[str, Path | None]
) -> None:
    """Check that none of the files that will be written to a folder is another output.

    Args:
        option: that names the folder.
        folder: which need not be there.
        names: of the files in it.
        outputs: the path of each other option that was given, as `{"--out": path}`.

    Raises:
        OptionError: one is.
    """
    places = {name: _Place.of(folder / name) for name in names}
    for other, path in outputs.items():
        place = None if path is None else _Place.of(path)
        for name, written in places.items():
            if place is not None and written.same(place):
                raise OptionError(
                    f"{other} {place.given} is {name} of {option} {folder}: give another path"
                )


def output_path(text: str) -> Path:
    """Read the path of an output. `-` is stdout, `./-` a file of that name.

    Raises:
        ArgumentTypeError: no file can have that name.
    """
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path")
    path = Path(text)
    return path.absolute() if path == STDOUT and text != str(STDOUT) else path


def is_stdout(path: Path | None) -> bool:
    """Whether what is written to `path` goes to stdout."""
    return path is not None and _Place.of(path).descriptor == 1


def is_stream(path: Path) -> bool:
    """Whether `path` leads to what is no regular file, so that its reader may go away."""
    return _Place.of(path).regular is None


@dataclass(frozen=True)
class _Place:
    """Where a path leads.

    Attributes:
        given: the path, for messages.
        path: the same, with links followed.
        descriptor: of this process, where the path names one.
        status: of what is there, or None.
    """

    given: Path
    path: Path
    descriptor: int | None
    status: os.stat_result | None

    @classmethod
    def of(cls, given: Path) -> _Place:
        descriptor = 1 if given == STDOUT else _own_descriptor(os.path.join(os.getcwd(), given))
        if descriptor is not None:
            with suppress(OSError):
                return cls(given, given, descriptor, os.fstat(descriptor))
            return cls(given, given, descriptor, None)
        path = Path(os.path.realpath(given))
        try:
            return cls(given, path, None, os.stat(given))
        except FileNotFoundError:
            return cls(given, path, None, None)

    @property
    def regular(self) -> Path | None:
        """The file that is there or will be, or None for what is no regular file."""
        if self.descriptor is not None:
            return None
        return self.path if self.status is None or stat.S_ISREG(self.status.st_mode) else None

    def check(self) -> None:
        """Check what is there, without opening it.

        Raises:
            OSError: it cannot be written to.
        """
        if self.descriptor is not None:
            if self.descriptor == 1 and sys.stdout is None:  # pyright: ignore
                raise _error(errno.EBADF, self.given)
            if self.descriptor != 1 or self.given != STDOUT:
                access = fcntl.fcntl(self.descriptor, fcntl.F_GETFL) & os.O_ACCMODE
                if access == os.O_RDONLY:
                    raise _error(errno.EACCES, self.given)
        elif self.status is not None:
            mode = self.status.st_mode
            if stat.S_ISDIR(mode):
                raise _error(errno.EISDIR, self.given)
            if stat.S_ISSOCK(mode):
                raise _error(errno.ENXIO, self.given)
            effective = os.access in os.supports_effective_ids
            if not os.access(self.path, os.W_OK, effective_ids=effective):
                raise _error(errno.EACCES, self.given)

    def write(self, content: bytes | memoryview) -> None:
        """Write to what is there, in place."""
        if self.descriptor == 1:
            _write_stdout(content)
        elif self.descriptor is not None:
            with open(self.descriptor, "wb", closefd=False) as stream:
                stream.write(content)
        elif self.regular is not None:
            with _uninterrupted():
                _overwrite(self.path, content)
        else:
            with open(os.open(self.given, os.O_WRONLY | os.O_NOCTTY), "wb") as stream:
                stream.write(content)

    def same(self, other: _Place) -> bool:
        """Whether two paths lead to one file, stdout or FIFO; a device takes any number."""
        if self.descriptor is not None and self.descriptor == other.descriptor:
            return True
        if self.status is None or other.status is None:
            return self.status is other.status and self.path == other.path
        return os.path.samestat(self.status, other.status) and not stat.S_ISCHR(self.status.st_mode)

    def belongs_to(self, source: Path) -> bool:
        """Whether this is a file that is read, or lies in a folder that is, by any of its names."""
        root = Path(os.path.realpath(source))
        if self.descriptor is None and root.is_dir() and root in self.path.parents:
            return True
        if self.status is None or not stat.S_ISREG(self.status.st_mode):
            return False
        for path in itertools.islice(_files_of(root), _MAX_FILES):
            with suppress(OSError):
                if os.path.samestat(self.status, os.stat(path)):
                    return True
        return False


def _own_descriptor(path: str) -> int | None:
    """Return N where a path leads to `/dev/fd/N` of this process, or None.

    To open such a path would open the file behind it a second time, from its beginning, and cannot
    be done to a socket.
    """
    own = re.compile(rf"/dev/fd|{re.escape(os.path.realpath('/proc/self'))}(/task/\d+)?/fd")
    for _ in range(_MAX_LINKS):
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)
        if own.fullmatch(folder) and re.fullmatch(r"[0-9]{1,9}", name):
            return int(name)
        path = os.path.join(folder, name)
        try:
            path = os.path.join(folder, os.readlink(path))
        except OSError:
            return None
    return None


def _files_of(root: Path) -> Generator[str]:
    if not root.is_dir():
        yield str(root)
    for folder, _, names in os.walk(root):
        for name in names:
            yield os.path.join(folder, name)


def _neighbour(place: _Place, path: Path, stack: ExitStack) -> Partial | None:
    """Make a temporary file to replace a regular one with, of its mode and owner.

    Returns:
        The file, or None where what is there must be written in place.
    """
    old = place.status
    if old is not None and old.st_nlink > 1:
        return None
    remove_abandoned(path)
    try:
        partial = stack.enter_context(partial_file(path, 0o666 if old is None else 0o600))
        if old is not None:
            new = os.fstat(partial.descriptor)
            if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(partial.descriptor, old.st_uid, old.st_gid)
            os.fchmod(partial.descriptor, stat.S_IMODE(old.st_mode))
    except OSError as error:
        if old is None or error.errno not in _CLOSED:
            raise
        return None
    return partial


def _overwrite(path: Path, content: bytes | memoryview) -> None:
    with open(os.open(path, os.O_WRONLY), "wb") as stream:
        # Room first, so that a full disk leaves what was there.
        if len(content) > os.fstat(stream.fileno()).st_size:
            _allocate(stream.fileno(), len(content))
        stream.write(content)
        stream.truncate()


def _allocate(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _write_stdout(content: bytes | memoryview) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.flush()


def _synchronise(descriptor: int) -> None:
    """Have the content on the disk before the name, where the file system can do that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


@contextmanager
def _uninterrupted() -> Generator[None]:
    """Put signals off that would leave a file half-written."""
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _told_as(path: Path) -> Generator[None]:
    """Name the path that the user gave in errors about it, or about a neighbour."""
    try:
        yield
    except OSError as error:
        told = error.filename
        named = told is not None and not str(told).endswith(".partial")
        if error.errno in _CLOSED:
            raise WriteRefusedError(
                error.errno, error.strerror, told if named else str(path)
            ) from error
        if error.errno and not named:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
