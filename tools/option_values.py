"""Values of the tools' options: what each may be is said, and checked, where it is parsed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..runtime.command.files import output_path

if TYPE_CHECKING:
    from ..runtime.command.parser import Group


def whole_number_reader(least: int, most: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from `least` to `most`, for `add_argument` and lists.

    The reader raises `argparse.ArgumentTypeError` where a text is anything else.
    """

    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {least} to {most}"
            )
        return value

    return whole_number


def real_number_reader(least: float, most: float, *, above: bool = False) -> Callable[[str], float]:
    """Return a reader of numbers from `least` (or, with `above`, above it) to `most`.

    The reader raises `argparse.ArgumentTypeError` where a text is anything else, NaN included.
    """
    start = f"above {least:g} and at most" if above else f"from {least:g} to"

    def real_number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or (above and value == least):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {start} {most:g}")
        return value

    return real_number


def add_json_report(group: Group, what: str, shown: str) -> None:
    """Add the option that saves a report as JSON, or prints that in place of it.

    Args:
        group: of options, or the parser.
        what: is saved.
        shown: what is printed otherwise.
    """
    group.add_argument(
        "--json",
        type=output_path,
        metavar="FILE",
        nargs="?",
        const="-",
        help=f"also save {what} as JSON; without FILE, or as -, to stdout in place of the {shown} "
        f"(default: {shown} alone)",
    )


# Runs count up from a seed, and both NumPy's and PyTorch's generators take these.
SEED = whole_number_reader(0, 2**63 - 1)
# More of any of them is a slip of the hand: the work would not end.
COUNT = whole_number_reader(1, 100_000)
THREADS = whole_number_reader(1, 256)
GUIDANCE = real_number_reader(0, 100, above=True)
