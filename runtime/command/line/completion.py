"""Completion in a shell, by argcomplete, which is imported only where a shell asks.

The shell runs the command with its line in the environment. Which values an option takes is said
where the option is added (`completes`); choices and files need nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from ..files import output_path

# Set by the shell: how many words stand before the options, the command's name being one.
_ASKED = "_ARGCOMPLETE"
# Given what was typed of a value, and the arguments before it: the values.
Completer = Callable[[str, argparse.Namespace], Iterable[str]]


def completes(action: argparse.Action, completer: Completer) -> None:
    """Say which values an option takes, for a shell to complete."""

    def complete(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        return [value for value in completer(prefix, parsed_args) if value.isprintable()]

    action.completer = complete  # pyright: ignore[reportAttributeAccessIssue]


def one_of(values: Iterable[str]) -> Completer:
    """Complete one of some values."""
    known = tuple(values)
    return lambda _prefix, _args: known


def some_of(values: Iterable[str]) -> Completer:
    """Complete values with commas between."""
    known = tuple(values)
    return lambda prefix, _args: listed(prefix, known)


def listed(prefix: str, values: Iterable[str]) -> list[str]:
    """What a list of values may go on as: each that it does not have yet."""
    before, comma, _ = prefix.rpartition(",")
    there = before.split(",")
    return [before + comma + value for value in values if value not in there]


def completing() -> bool:
    """Whether a shell asks for completions, and nothing is to be run."""
    return _ASKED in os.environ


def complete(parser: argparse.ArgumentParser) -> NoReturn:
    """Answer the shell, and end the process."""
    try:
        from argcomplete.completers import FilesCompleter
        from argcomplete.finders import CompletionFinder
    except ImportError:
        raise SystemExit(1) from None  # the shell completes nothing
    files = FilesCompleter()

    def paths(prefix: str, action: argparse.Action, **settings: Any) -> Iterable[str]:
        is_path = action.type in (Path, output_path)
        return files(prefix=prefix, action=action, **settings) if is_path else ()

    default: Any = paths  # any callable does
    CompletionFinder()(parser, default_completer=default, always_complete_options=False)
    raise SystemExit(1)  # it ends the process itself


def next_command(names: Iterable[str]) -> str | None:
    """Return the command that stands whole before the cursor, and count it as one of the names.

    Args:
        names: of the commands.
    """
    try:
        from argcomplete.lexers import split_line
    except ImportError:
        return None
    line, point = os.environ.get("COMP_LINE", ""), os.environ.get("COMP_POINT", "")
    typed = line.encode()[: int(point)] if point.isdecimal() else line.encode()
    words = split_line(line, len(typed.decode(errors="ignore")))[3]
    asked = os.environ[_ASKED]
    count = int(asked) if asked.isdecimal() else 1
    if len(words) <= count or words[count] not in set(names):
        return None
    os.environ[_ASKED] = str(count + 1)
    return words[count]
