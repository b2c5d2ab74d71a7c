"""What counts as answered, and how a command is asked.

A command answers with exit code 0, or with 2 (or another code that a case states), exactly one line
on stderr that is safe to print, and nothing left behind. What it did not foresee is a fault.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from csd.runtime.command.frame import REPORT_FOLDER

MOST_CHARACTERS = 400
MOST_SECONDS = 60
NOBODY = 65534
AT_WORK = "at work"

Main = Callable[[Sequence[str]], int]


class Worked(BaseException):
    """What was asked for was taken, and work would begin."""


class TooLong(BaseException):
    """A command did not end."""


class Skipped(Exception):  # noqa: N818
    """A case cannot be tried on this machine; says why."""


@dataclass(frozen=True)
class Case:
    """One thing to try.

    Attributes:
        name: what it is, for people.
        fault: tries it; returns what is wrong with the answer, or None.
    """

    name: str
    fault: Callable[[], str | None]


@dataclass(frozen=True)
class Answer:
    """What a command answered.

    Attributes:
        code: its exit code, `AT_WORK`, or what escaped it.
        out: what it printed.
        err: what it printed to stderr.
    """

    code: int | str
    out: bytes
    err: str

    def fault(self, codes: Sequence[int | str] = (0, 2, AT_WORK)) -> str | None:
        """Say what is wrong with the answer, or return None.

        Args:
            codes: that are right.
        """
        if self.code not in codes:
            return f"answered with {self.code}: {self.err[-300:]!r}"
        if "Traceback" in self.err:
            return f"a traceback: {self.err[-300:]!r}"
        if self.code in (0, AT_WORK):
            return None
        lines = self.err.split("\n")
        if len(lines) != 2 or lines[1]:
            return f"not one line: {self.err[:300]!r}"
        if not lines[0].isprintable():
            return f"not printable: {self.err[:300]!r}"
        if len(lines[0]) >= MOST_CHARACTERS:
            return f"{len(lines[0])} characters: {lines[0]!r}"
        if ": error: " not in lines[0]:
            return f"names no command: {lines[0]!r}"
        return None


def ask(main: Main, argv: Sequence[object]) -> Answer:
    """Run a command in this process, with stdout and stderr of its own."""
    with _captured() as (out, err), _limited():
        try:
            code: int | str = main([os.fsdecode(part) if isinstance(part, bytes) else str(part)
                                    for part in argv])  # fmt: skip
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else repr(stopped.code)
        except Worked:
            code = AT_WORK
        except TooLong:
            code = f"no end after {MOST_SECONDS} s"
        except BaseException as error:
            code = repr(error)
    return Answer(code, out(), err().decode(errors="backslashreplace"))


def ask_process(
    module: str, argv: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None
) -> Answer:
    """Run a command in a process of its own, within `folder`."""
    done = subprocess.run(
        command(module, argv), cwd=folder, capture_output=True, check=False, timeout=600,
        stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr.decode(errors="backslashreplace"))


def command(module: str, argv: Sequence[object]) -> list[str]:
    """The command line of an entry point (`csd.runtime.entry`) or of a module that runs."""
    if module.endswith(".entry"):
        start = ["-c", f"import sys; from {module} import main; sys.exit(main())"]
    else:
        start = ["-m", module]
    return [sys.executable, *start, *map(str, argv)]


@contextlib.contextmanager
def own_folder(place: Path) -> Iterator[Path]:
    """Be in an empty folder for a while, which all may write to."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(dir=place, prefix="work-") as name:
        os.chmod(name, 0o777)
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def tree(folder: Path) -> list[str]:
    """Everything in a folder, by relative name."""
    return sorted(os.path.relpath(path, folder) for path in folder.rglob("*"))


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Have no rights for a while.

    Raises:
        Skipped: this is not root, who alone can give them up and take them back.
    """
    if os.geteuid() != 0:
        raise Skipped("needs root, to be somebody else")
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextlib.contextmanager
def reports_kept_in(folder: Path) -> Iterator[None]:
    """Have reports of what nobody foresaw written to a folder."""
    folder.mkdir(exist_ok=True)
    os.chmod(folder, 0o777)
    with mock.patch.dict(os.environ, {REPORT_FOLDER: str(folder)}):
        yield


@contextlib.contextmanager
def _captured() -> Iterator[tuple[Callable[[], bytes], Callable[[], bytes]]]:
    """Have descriptors 1 and 2, and what Python prints, go to files; yields what reads them."""
    before = sys.stdout, sys.stderr
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:

        def reader(stream: io.BufferedRandom) -> Callable[[], bytes]:
            return lambda: content[stream]

        content: dict[object, bytes] = {}
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = _text_to(1), _text_to(2)
        try:
            yield reader(out), reader(err)
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(ValueError, OSError):
                    stream.flush()
            sys.stdout, sys.stderr = before
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            for stream in (out, err):
                stream.seek(0)
                content[stream] = stream.read()


def _text_to(descriptor: int) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
