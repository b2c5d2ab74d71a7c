"""What the tools print: progress on stderr, and tables that are cut by a window alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ..runtime.command.parser import make_console, report_stream

Report = Callable[[str], None]


def results_console(*outputs: Path | None) -> Console:
    """Return the console of the results: as wide as the window, or of full width without one.

    Args:
        outputs: of the run; where one is stdout, what else there is to say goes to stderr.
    """
    return make_console(report_stream(*outputs))


def progress_report() -> Report:
    """Return what prints a line of progress, on stderr: a reader of the results sees none."""
    console = make_console(sys.stderr)

    def report(line: str) -> None:
        console.print(line, soft_wrap=True)

    return report
