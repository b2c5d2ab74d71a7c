"""What the commands share: help layout, error reporting, exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TextIO, TypeVar

from ..errors import OptionError
from .files import is_stdout
from .frame import EXIT_ERROR, run_framed
from .line.completion import complete, completing
from .line.spelling import spelled
from .text import one_line, shown

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

LOWER = "the size of what was asked for"
# Of `logging`, which is imported when a command runs: help is shown without it.
LEVELS, DEFAULT_LEVEL = ("debug", "info", "warning", "error"), "warning"
# Columns of what is no terminal: more than any table has.
WIDE = 10_000


class Group(Protocol):
    """Options that the help shows together."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Add an option, as `argparse.ArgumentParser.add_argument` does."""
        ...


class Parser(argparse.ArgumentParser):
    """A parser whose help shows every default and whose errors are one line.

    Args:
        prog: name of the command.
        description: what it does.
        example: a whole command line.
        lower: what to lower where memory runs out, as `the number of --labels`.
        runs: whether it does something itself, which its logs tell of; False is of one that passes
            the line on to another command.
    """

    def __init__(
        self, prog: str, description: str, example: str, lower: str = LOWER, *, runs: bool = True
    ) -> None:
        super().__init__(
            prog=spelled(prog),
            description=spelled(description),
            epilog=f"example: {spelled(example)}",
            formatter_class=_HelpFormatter,
        )
        self.lower = lower
        self._groups: dict[str, Group] = {}
        self.add_argument(
            "--version", action=_Version, nargs=0, default=argparse.SUPPRESS,
            help="show the version and exit",
        )  # fmt: skip
        if runs:
            self.add_argument(
                "--log-level", choices=LEVELS, default=DEFAULT_LEVEL,
                help="what to tell of on stderr: decisions (info), and how they came about (debug)",
            )  # fmt: skip

    def group(self, title: str) -> Group:
        """Return the group of options of this title, for `add_argument`."""
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        return self._groups[title]

    def sections(self) -> list[tuple[str, list[argparse.Action]]]:
        """The arguments by the titles that the help has."""
        return [
            (group.title or "", list(group._group_actions))  # pyright: ignore[reportPrivateUsage]
            for group in self._action_groups
        ]

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse as `argparse` does.

        Returns:
            The arguments, and in `given` the options that the command line has, as it may spell
            them, by their names there.
        """
        given = sys.argv[1:] if args is None else [*args]
        parsed = super().parse_args(given, namespace)
        parsed.given = self._given(given)
        return parsed

    def _given(self, args: Sequence[str]) -> dict[str, str]:
        """What is there without any default was given."""
        defaults = [(action, action.default) for action in self._actions]
        try:
            for action in self._actions:
                action.default = argparse.SUPPRESS
            found = vars(super().parse_args(args, argparse.Namespace()))
        finally:
            for action, default in defaults:
                action.default = default
        options = [action for action in self._actions if action.option_strings]
        return {a.dest: a.option_strings[0] for a in options if a.dest in found}

    def error(self, message: str) -> NoReturn:
        """Report a bad command line and exit with code 2."""
        line = one_line(f"{self.prog}: error: {message}: see {self.prog} --help")
        self.exit(EXIT_ERROR, line + "\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from ..version import version

        print(f"{parser.prog} {version()}")
        parser.exit()


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows the default of each option, unless its text says that."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = spelled(action.help or "")
        if action.default is argparse.SUPPRESS or action.required or "(default" in shown:
            return shown
        if action.default is None or action.default is False:
            return f"{shown} (default: {'none' if action.default is None else 'off'})"
        return f"{shown} (default: %(default)s)"


def make_console(stream: TextIO | None = None) -> Console:
    """Return a console that cuts no table where there is no window, and is silent without a stream.

    It prints text as it is: no markup, and no picture in place of `:100:`.

    Args:
        stream: where it prints; None is stdout.
    """
    from rich.console import Console

    # Python has no stdout or stderr where the descriptor was closed before it started.
    out: TextIO | None = sys.stdout if stream is None else stream
    if out is None:
        return Console(file=io.StringIO(), quiet=True)
    width = None if out.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(file=out, highlight=False, markup=False, emoji=False, width=width)


def parse_list(name: str, text: str, kind: Callable[[str], T], known: Sequence[T] = ()) -> list[T]:
    """Read an option's values with commas between; one that is given twice counts once.

    Args:
        name: of the option, for messages.
        text: as it was given.
        kind: reads a value; raises `ValueError`, or with a message of its own `OptionError` or
            `argparse.ArgumentTypeError`.
        known: values that there are, unless any that `kind` reads.

    Raises:
        OptionError: a value cannot be read or is not known, or there is none.
    """
    try:
        values = [kind(part.strip()) for part in text.split(",") if part.strip()]
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"{name} is {shown(text)}: {error}") from error
    except OptionError:
        raise
    except ValueError as error:
        raise OptionError(f"{name} is {shown(text)}: give numbers with commas between") from error
    if not values:
        raise OptionError(f"{name} is empty: give at least one")
    if known and (unknown := [value for value in values if value not in known]):
        raise OptionError(
            f"{name} has {shown(unknown[0])}: give some of {', '.join(map(str, known))}"
        )
    return list(dict.fromkeys(values))


def run_command(
    run: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse `argv` and run, within the frame of all commands (`frame.py`).

    Where a shell asks for completions these are all that comes.

    Returns:
        The exit code: what `run` returns, or that of the frame.
    """
    lower = parser.lower if isinstance(parser, Parser) else LOWER

    def body() -> int:
        if completing():
            complete(parser)
        args = parser.parse_args(argv)
        from .line.logs import shown_logs

        with shown_logs(getattr(args, "log_level", DEFAULT_LEVEL)):
            return run(args)

    return run_framed(parser.prog, body, lower)


def report_stream(*outputs: Path | None) -> TextIO:
    """Where to print what a run has to say: stderr where an output goes to stdout."""
    return sys.stderr if any(is_stdout(path) for path in outputs) else sys.stdout
