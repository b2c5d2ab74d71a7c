"""What the commands share: help layout, error reporting, exit codes."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from .errors import CsdError, OptionError

T = TypeVar("T")

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """A parser whose help shows defaults and whose errors are one line."""

    def __init__(self, prog: str, description: str, example: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"example: {example}",
            formatter_class=_HelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Report a bad command line and exit with code 2."""
        self.exit(EXIT_ERROR, f"{self.prog}: error: {message}: see {self.prog} --help\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows each default, except where there is none to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or action.required:
            return action.help
        return super()._get_help_string(action)


def parse_list(name: str, text: str, kind: Callable[[str], T], known: Sequence[T] = ()) -> list[T]:
    """Read an option's values with commas between; one that is given twice counts once.

    Args:
        name: of the option, for messages.
        text: as it was given.
        kind: reads a value; raises `ValueError`, or `argparse.ArgumentTypeError` with a message.
        known: values that there are, unless any that `kind` reads.

    Raises:
        OptionError: a value cannot be read or is not known, or there is none.
    """
    try:
        values = [kind(part.strip()) for part in text.split(",") if part.strip()]
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"{name} is {text!r}: {error}") from error
    except ValueError as error:
        raise OptionError(f"{name} is {text!r}: give numbers with commas between") from error
    if not values:
        raise OptionError(f"{name} is empty: give at least one")
    if known and (unknown := [value for value in values if value not in known]):
        raise OptionError(f"{name} has {unknown[0]!r}: give some of {', '.join(map(str, known))}")
    return list(dict.fromkeys(values))


def run_command(
    run: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse `argv`, run, and turn errors that a user can mend into one line on stderr.

    Returns:
        The exit code: what `run` returns, 2 for a user's error, 130 for Ctrl-C.
    """
    args = parser.parse_args(argv)
    try:
        return run(args)
    except CsdError as error:
        message, code = str(error), EXIT_ERROR
    except KeyboardInterrupt:
        message, code = "interrupted; nothing was left half-written", EXIT_INTERRUPTED
    except OSError as error:
        message, code = _os_error(error), EXIT_ERROR
    print(f"{parser.prog}: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _os_error(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    remedies = {
        errno.ENOSPC: "free some space, or write to another disk",
        errno.EACCES: "choose a directory that you may write to",
        errno.EPERM: "choose a directory that you may write to",
        errno.EROFS: "choose a directory that you may write to",
        errno.ENOENT: "check the path",
        errno.ENOTDIR: "check the path: a part of it is a file",
        errno.EISDIR: "give the path of a file",
    }
    remedy = remedies.get(error.errno or 0, "check the path and the disk")
    return f"{error.strerror or error}{where}: {remedy}"
