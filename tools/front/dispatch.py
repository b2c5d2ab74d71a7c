"""From the first word of a command line to the command of that name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from ...runtime.command.line.completion import completing, next_command
from ...runtime.command.parser import Parser, run_command
from ...runtime.command.text import listed, shown


def add_command_argument(parser: Parser, names: Sequence[str]) -> None:
    """Add the argument that names the command."""
    parser.add_argument("command", choices=names, type=_reader(names), help="what to do")


def dispatch(
    build_parser: Callable[[], Parser], modules: Mapping[str, str], argv: Sequence[str] | None
) -> int:
    """Run the command that the line begins with, by the `main` of its module.

    Args:
        build_parser: makes the parser of a line without a command.
        modules: of the commands, by their names.
        argv: the line, or None for that of the process.

    Returns:
        The exit code.
    """
    given = [*(sys.argv[1:] if argv is None else argv)]
    if completing():
        name, given = next_command(modules), []
    else:
        name = given[0] if given and given[0] in modules else None
    if name is not None:
        return int(import_module(modules[name]).main(given[1:]))
    return run_command(_unreached, build_parser(), given)


def _reader(names: Sequence[str]) -> Callable[[str], str]:
    def command(text: str) -> str:
        if text in names:
            return text
        from difflib import get_close_matches

        near = get_close_matches(text.casefold(), names, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"give {listed(names, 'or')}"
        raise argparse.ArgumentTypeError(f"there is no {shown(text)}: {remedy}")

    return command


def _unreached(args: argparse.Namespace) -> int:
    """Never called: a command that the parser takes was taken before it."""
    raise AssertionError(args.command)
