from __future__ import annotations

import io

import pytest
from rich.console import Console

from csd.export import progress
from csd.export.progress import duration, shown_progress


def shown(terminal, seconds):
    """What is printed of four steps that take so many seconds each."""
    out, now = io.StringIO(), [0.0]
    console = Console(file=out, width=120, force_terminal=terminal)
    with shown_progress(console, lambda: now[0])("target.backbone") as step:
        for done in range(5):
            step("checking", done, 4)
            now[0] += seconds
    return out.getvalue()


def test_a_terminal_shows_a_bar_with_the_time_left():
    assert "target.backbone: checking" in shown(True, 1)
    assert "left" in shown(True, 1)


def test_a_log_gets_a_line_now_and_then_with_the_time_left():
    assert shown(False, progress.LINE_SECONDS / 5) == ""
    lines = shown(False, 60).splitlines()
    assert lines[0] == "target.backbone: checking, 1 of 4, 3 min left"
    assert lines[-1] == "target.backbone: checking, 4 of 4"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (80, "80 s"), (200, "3 min"), (7500, "2 h 5 min")]
)
def test_durations_are_said_in_the_largest_unit_that_fits(seconds, said):
    assert duration(seconds) == said
