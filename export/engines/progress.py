"""How the build of an engine is shown: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from .builder import OnStep
from .update import Progress


@contextlib.contextmanager
def silent(label: str) -> Generator[OnStep]:
    """Show nothing."""

    def step(phase: str, done: int, total: int) -> None:
        del phase, done, total

    del label
    yield step


def engine_progress(console: Console) -> Progress:
    """Return what shows the progress of engines on a console."""
    return lambda label: _bar(console, label) if console.is_terminal else silent(label)


@contextlib.contextmanager
def _bar(console: Console, label: str) -> Generator[OnStep]:
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(label, total=None)

        def step(phase: str, done: int, total: int) -> None:
            bars.update(task, description=f"{label}: {phase}", completed=done, total=total)

        yield step
