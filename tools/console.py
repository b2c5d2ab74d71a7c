"""What the tools print: progress on stderr, and tables that are cut by a window alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from rich.console import Console

from ..runtime.cli_support import report_stream

# Wide enough that no table of ours is cut where there is no window.
FULL_WIDTH = 10_000

Report = Callable[[str], None]


def results_console(*outputs: Path | None) -> Console:
    """Return the console of the results: as wide as the window, or of full width without one.

    Args:
        outputs: of the run; where one is stdout, what else there is to say goes to stderr.
    """
    return _console(report_stream(*outputs))


def progress_report() -> Report:
    """Return what prints a line of progress, on stderr: a reader of the results sees none."""
    console = _console(sys.stderr)

    def report(line: str) -> None:
        console.print(line, soft_wrap=True)

    return report


def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() or "COLUMNS" in os.environ else FULL_WIDTH
    return Console(file=stream, highlight=False, markup=False, width=width)
