"""Option values that break programs, and what a command may answer them with."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import pytest

from csd.runtime.command.text import MAX_MESSAGE

VALUES = (
    "", " ", "-", "0", "-0", "-1", "1", "2", "1000", "2147483647", "2147483648", "-2147483649",
    str(2**63), str(2**64), str(10**400), "9" * 5000, "0.5", "1.5", "-1e400", "1e400", "1e308",
    "1e-320", "nan", "inf", "-inf", "0x10", "²", "١", "1_0", "None", "true", "auto", "%s%(prog)s%",
    "{}", "[1]", "1,2", "1:2", "1:2:3", ",", ":", "\x1b[31mred\x07", "a\nb\r", "\u202eabc",
    "é\udcff", "x" * 10_000, "a/b", "../..", "/", ".", "~", "fp16,fp32", "a\0b",
)  # fmt: skip


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the options of a parser that take a value."""
    for action in parser._actions:
        if action.option_strings and action.nargs != 0:
            yield action.option_strings[0]


def check(main: Callable[[Sequence[str]], int], argv: Sequence[object], capsys) -> int:
    """Run a command: it must end with code 0, or with code 2 and one line that is safe to print."""
    capsys.readouterr()
    try:
        code = main([str(part) for part in argv])
    except SystemExit as stopped:
        code = stopped.code
    err = capsys.readouterr().err
    shown = [part if len(str(part)) < 200 else f"{str(part)[:200]}.." for part in argv]
    if code == 0:
        assert err == "", shown
        return code
    assert code == 2, (shown, err)
    assert err.endswith("\n"), shown
    line = err[:-1]
    assert line.isprintable(), (shown, line)
    assert len(line) <= MAX_MESSAGE, shown
    assert ": error: " in line, shown
    return code


def every(parser: argparse.ArgumentParser) -> pytest.MarkDecorator:
    """Run a test for each option that takes a value."""
    return pytest.mark.parametrize("option", list(options(parser)))
