"""The frame around every command: signals, closed pipes, and errors that nobody foresaw.

Imports nothing that takes time, so that a command is within it before NumPy is read.

| outcome | exit code |
| --- | --- |
| an error that a user can mend, or no memory | 2 |
| an error that nobody foresaw; its traceback is in a file | 1 |
| Ctrl-C, SIGTERM, SIGHUP | 130, 143, 129 |
| who read stdout or stderr went away: what was asked for is done and written all the same | 141 |
"""

from __future__ import annotations

import errno
import io
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ..errors import CsdError, WriteRefusedError
from .memory_errors import more_memory, speaks_of_memory
from .text import one_line

EXIT_UNFORESEEN = 1
EXIT_ERROR = 2
EXIT_CLOSED_PIPE = 128 + signal.SIGPIPE
REPORT_FOLDER = "CSD_REPORT_DIR"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A shell and a supervisor may both pass one Ctrl-C on; and tidying up must not be cut short.
_ONE_SIGNAL_SECONDS = 1.0
# After that a signal is sent again: by then the finaliser that lost it is over.
_AGAIN_SECONDS = 0.01
_REMEDIES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EACCES: "choose a path that you may write to",
    errno.EPERM: "choose a path that you may write to",
    errno.EROFS: "choose a path that you may write to",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EISDIR: "give the path of a file",
    errno.ENXIO: "give the path of a file, device or pipe",
    errno.ELOOP: "check the path: its links lead in a circle",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EBADF: "give the number of an open file, or a path",
}


class Stopped(KeyboardInterrupt):
    """A signal that ends the command, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Frame(threading.local):
    """What the frame of this thread knows.

    Attributes:
        open: whether there is one.
        received: signals that came since it was opened, the last one last.
        at: when that was, `time.monotonic`.
    """

    open = False
    received: tuple[int, ...] = ()
    at = -math.inf


_frame = _Frame()


def run_framed(
    prog: str,
    body: Callable[[], int],
    lower: str = "the size of what was asked for",
    *,
    last: bool = False,
) -> int:
    """Run a command so that whatever ends it is one line on stderr and an exit code.

    A frame within another one (a command that runs a command) leaves signals to the outer one.

    Args:
        prog: name of the command, for messages.
        body: does the work and returns the exit code.
        lower: what to lower where memory runs out.
        last: the process ends with it: a signal that is sent twice changes nothing any more.

    Returns:
        The exit code: what `body` returns, or as the table above says.

    Raises:
        SystemExit: from `body`, as of a command line that cannot be parsed.
    """
    if _frame.open:
        return _guarded(prog, body, lower)
    _frame.open, _frame.received, _frame.at = True, (), -math.inf
    try:
        with _own_streams() as streams:
            try:
                with _signals(last):
                    code = _guarded(prog, body, lower)
            except KeyboardInterrupt as error:
                code = _tell(prog, *_stopped(error))
        return EXIT_CLOSED_PIPE if code == 0 and any(s.reader_left for s in streams) else code
    finally:
        _frame.open = False


def raise_if_stopped() -> None:
    """Stop where a signal has come whose exception was lost: C code that imports may drop it.

    Long work calls this from time to time, and so does what imports large libraries.

    Raises:
        Stopped: a signal came since the frame was opened.
    """
    if _frame.received:
        raise Stopped(_frame.received[-1])


def os_error_text(error: OSError) -> str:
    """Say what the system refused, on what, and what mends it."""
    where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
    remedy = _REMEDIES.get(error.errno or 0, "check the path and the disk")
    if (
        where
        and error.errno in (errno.EACCES, errno.EPERM)
        and not isinstance(error, WriteRefusedError)
    ):
        from .permissions import read_refused, readable

        if read_refused(path := os.fsdecode(error.filename)):
            remedy = readable(path)
    return f"{error.strerror or error}{where}: {remedy}"


def _guarded(prog: str, body: Callable[[], int], lower: str) -> int:
    """Run and tell of errors; those that follow from a signal are the signal."""
    try:
        code = body()
        if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
            sys.stdout.flush()
        return code
    except Exception as error:
        if _frame.received:  # within an import, C code may have made another error of Ctrl-C
            raise Stopped(_frame.received[-1]) from error
        return _told(prog, error, lower)


def _told(prog: str, error: Exception, lower: str) -> int:
    if isinstance(error, CsdError):
        return _tell(prog, str(error), EXIT_ERROR)
    if isinstance(error, BrokenPipeError):
        return EXIT_CLOSED_PIPE
    text = _text_of(error)
    if isinstance(error, MemoryError) or speaks_of_memory(text):
        cause = f" ({text})" if text else ""
        return _tell(prog, f"out of memory{cause}: lower {lower}, or {more_memory()}", EXIT_ERROR)
    if isinstance(error, OSError):
        return _tell(prog, os_error_text(error), EXIT_ERROR)
    if isinstance(error, ImportError):
        from ..libraries.causes import explain_missing

        if (known := explain_missing(error)) is not None:
            return _tell(prog, ": ".join(known), EXIT_ERROR)
    if isinstance(error, ValueError) and "embedded null" in text:
        return _tell(prog, "a path holds a NUL character: give it without", EXIT_ERROR)
    if isinstance(error, RecursionError):
        cause = "a file that was read is nested too deeply: check the JSON files that were given"
        return _tell(prog, f"{cause}; {_write_report(error)}", EXIT_ERROR)
    cause = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return _tell(
        prog, f"unforeseen {one_line(cause, 300)}; {_write_report(error)}", EXIT_UNFORESEEN
    )


def _text_of(error: Exception) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def _stopped(error: KeyboardInterrupt) -> tuple[str, int]:
    number = error.number if isinstance(error, Stopped) else signal.SIGINT
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    return f"interrupted{name}; nothing was left half-written", 128 + number


def _tell(prog: str, message: str, code: int) -> int:
    # Print would take stdout where there is no stderr.
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]
        with suppress(OSError):
            print(one_line(f"{prog}: error: {message}"), file=sys.stderr, flush=True)
    return code


def _write_report(error: Exception) -> str:
    """Write a traceback to a file of its own; returns a sentence that says where."""
    import tempfile
    import traceback

    from ..version import version

    folder = os.environ.get(REPORT_FOLDER) or None
    try:
        number, path = tempfile.mkstemp(".txt", "csd-report-", folder)
        with open(number, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(f"command: {shlex.join(sys.argv)}\n")
            stream.write(f"python: {sys.version}\nplatform: {sys.platform}\n")
            stream.write(f"csd: {version()}\n\n")
            stream.write("".join(traceback.format_exception(error)))
    except OSError as failed:
        return (
            f"its traceback could not be written ({os_error_text(failed)}): give a folder in "
            f"{REPORT_FOLDER}"
        )
    return f"its traceback is in {path}: report it with that file"


@contextmanager
def _signals(last: bool) -> Generator[None]:
    """Have the signals raise `Stopped`, except those that somebody else handles or ignores."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = {
        number: old
        for number in _SIGNALS
        if (old := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler)
    }
    hook, sys.unraisablehook = sys.unraisablehook, _send_again
    try:
        for number in ours:
            signal.signal(number, _receive)
        yield
    finally:
        for number, old in ours.items():
            signal.signal(number, signal.SIG_IGN if last and _frame.received else old)
        sys.unraisablehook = hook


def _receive(number: int, _: FrameType | None) -> None:
    since = time.monotonic() - _frame.at
    if since < _ONE_SIGNAL_SECONDS:
        return
    _frame.received, _frame.at = (*_frame.received, number), time.monotonic()
    raise Stopped(number)


def _send_again(unraisable: Any) -> None:
    """Send a signal once more that came where exceptions are lost, as in a finaliser."""
    if isinstance(unraisable.exc_value, Stopped):
        _frame.at = -math.inf
        arguments = (os.getpid(), unraisable.exc_value.number)
        threading.Timer(_AGAIN_SECONDS, os.kill, arguments).start()
    else:
        sys.__unraisablehook__(unraisable)


class _Stream(io.FileIO):
    """Stdout or stderr of this process, whose reader may leave: then nothing is written any more.

    Attributes:
        reader_left: whether it did.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.reader_left = self._failed = False

    def write(self, data: Any, /) -> int:
        """Write bytes, or drop them where they cannot be written a second time."""
        if not (self.reader_left or self._failed):
            try:
                return super().write(data)
            except BrokenPipeError:
                self.reader_left = True
            except OSError:
                self._failed = True
                raise
        return memoryview(data).nbytes


@contextmanager
def _own_streams() -> Generator[list[_Stream]]:
    """Set stdout and stderr to streams that outlive their readers, where they are the process's."""
    streams: list[_Stream] = []
    before = sys.stdout, sys.stderr
    try:
        if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
            sys.stderr = _nowhere()
        sys.stdout = _own_stream(sys.stdout, sys.__stdout__, streams)
        sys.stderr = _own_stream(sys.stderr, sys.__stderr__, streams)
        yield streams
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # pyright: ignore[reportUnnecessaryComparison]
                with suppress(OSError, ValueError):
                    stream.flush()
        sys.stdout, sys.stderr = before


def _nowhere() -> io.TextIOWrapper:
    """Return what takes the place of a stderr that is closed: libraries write to it unasked.

    Its descriptor is taken too where it is free, or the next file that is opened would have it, and
    get what libraries print.
    """
    stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        os.fstat(2)
    except OSError:
        os.dup2(stream.fileno(), 2)
    return stream


def _own_stream(stream: Any, original: Any, streams: list[_Stream]) -> Any:
    if stream is None or stream is not original:
        return stream  # there is none, or somebody reads what we print
    raw = _Stream(stream.fileno())
    streams.append(raw)
    # A path may hold bytes that are no text.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, "backslashreplace",
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip
