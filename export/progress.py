"""How long work is shown: by a bar on a terminal, elsewhere by a line now and then.

Work is a label with phases one after another, each with its steps. Both say the time that is left
of the phase, by the pace of its steps so far.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

# Where nobody looks on, as in a log file, a line is enough so often.
LINE_SECONDS = 20.0

# Called with the phase, the steps that are done in it, and their number.
OnStep = Callable[[str, int, int], None]
# Shows the progress of a piece of work while its context is open.
Progress = Callable[[str], AbstractContextManager[OnStep]]
Report = Callable[[str], None]


def unseen(phase: str, done: int, total: int) -> None:
    """Take a step that nobody sees."""
    del phase, done, total


@contextlib.contextmanager
def silent(label: str) -> Generator[OnStep]:
    """Show nothing."""
    del label
    yield unseen


def shown_progress(console: Console, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Return what shows progress on a console.

    Args:
        console: which may be no terminal.
        clock: seconds.
    """
    if console.is_terminal:
        return lambda label: _bar(console, label)
    return lambda label: _lines(console, label, clock)


def duration(seconds: float) -> str:
    """Say how long something takes, as `40 s`, `3 min` or `2 h 10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@contextlib.contextmanager
def _bar(console: Console, label: str) -> Generator[OnStep]:
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(),
        TextColumn("left", markup=False), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=console, transient=True) as bars:
        task, current = bars.add_task(label, total=None), ""

        def step(phase: str, done: int, total: int) -> None:
            nonlocal current
            if phase != current:  # the pace of one phase says nothing of the next
                bars.reset(task)
                current = phase
            bars.update(task, description=f"{label}: {phase}", completed=done, total=total)

        yield step


@dataclass
class _Phase:
    """A phase that is under way: its name, when it began, and when a line was printed last."""

    name: str
    began: float
    told: float


@contextlib.contextmanager
def _lines(console: Console, label: str, clock: Callable[[], float]) -> Generator[OnStep]:
    began = clock()
    phase = _Phase("", began, began)

    def step(name: str, done: int, total: int) -> None:
        now = clock()
        if name != phase.name:
            phase.name, phase.began = name, now
        if now - phase.told < LINE_SECONDS:
            return
        phase.told = now
        left = ""
        if 0 < done < total:
            left = f", {duration((now - phase.began) * (total - done) / done)} left"
        console.print(f"{label}: {name}, {done} of {total}{left}", soft_wrap=True)

    yield step
