"""What csd tells of its decisions, with Python's own `logging`, on loggers below `csd`.

As a library csd configures nothing: its lines go where the program that imports it sends them, and
nowhere without that. A command shows them on stderr, as `--log-level` says.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ..text import one_line

ROOT = "csd"
_LONGEST = 2000

logging.getLogger(ROOT).addHandler(logging.NullHandler())


def logger(module: str) -> logging.Logger:
    """Return the logger of a module, which lies below `csd`.

    Args:
        module: its `__name__`.
    """
    return logging.getLogger(module)


@contextmanager
def shown_logs(level: str) -> Generator[None]:
    """Show lines of a level and above on stderr, within.

    A command that runs another one keeps its own level.

    Args:
        level: `debug`, `info`, `warning` or `error`.
    """
    root = logging.getLogger(ROOT)
    if any(isinstance(handler, _ToStderr) for handler in root.handlers):
        yield
        return
    handler, before = _ToStderr(), root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


class _ToStderr(logging.Handler):
    """Prints lines on what stderr is at that moment: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        line = one_line(f"{record.name}: {record.getMessage()}", _LONGEST)
        seconds = record.relativeCreated / 1000
        try:
            print(f"[{seconds:8.3f} s] {record.levelname.lower()}: {line}", file=sys.stderr)
        except Exception:
            self.handleError(record)

    def handleError(self, record: Any) -> None:  # noqa: N802
        """Say nothing: whoever reads stderr is gone, and the work goes on."""
