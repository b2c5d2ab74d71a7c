"""The clocks that a measurement may count by."""

from __future__ import annotations

import time

from ...runtime.command.parser import Parser

# `cpu` is the process's own processor time, which other work disturbs little; not for devices.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def add_clock_argument(parser: Parser) -> None:
    """Add the option that names one of `CLOCKS`."""
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what is counted")
