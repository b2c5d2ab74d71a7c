"""What the tools print: progress beside the results, and tables that no pipe cuts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

# Wide enough that no table of ours is cut where nobody's window is its bound.
FULL_WIDTH = 10_000

Report = Callable[[str], None]


class PipeConsole(Console):
    """A console whose reader may go away: what is printed after that is dropped."""

    def print(self, *objects: Any, **settings: Any) -> None:
        """See `Console.print`."""
        try:
            super().print(*objects, **settings)
        except BrokenPipeError:  # of a rich that does not call `on_broken_pipe`
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Go on in silence; what is still buffered goes nowhere."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


def results_console(*, stderr: bool = False) -> Console:
    """Return the console of the results: as wide as the window, and without one of full width."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else FULL_WIDTH
    return PipeConsole(highlight=False, markup=False, stderr=stderr, width=width)


def progress_report() -> Report:
    """Return what prints a line of progress, on stderr: a reader of the results sees none."""
    console = PipeConsole(highlight=False, markup=False, stderr=True)

    def report(line: str) -> None:
        console.print(line, soft_wrap=True)

    return report
