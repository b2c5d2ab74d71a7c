"""Python in a process of its own, for what may end the process that does it.

A package that is built for another processor, or a driver's library, may end Python at its import.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...runtime.libraries.telemetry import switch_off

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from importlib import import_module
import_module(sys.argv[2]).main(json.loads(sys.argv[3]))
"""


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        values: the JSON values that it printed, a line each, those before it failed included.
        how: what ended it, or empty where it ended by itself and without an error.
    """

    values: tuple[Any, ...]
    how: str


def run_child(module: str, arguments: Any, seconds: float) -> Ended:
    """Call `main` of a module of this package in another Python, with the same import path.

    Args:
        module: its full name.
        arguments: JSON values for `main`.
        seconds: that it may take.
    """
    environment = {**os.environ}
    switch_off(environment)
    argv = [sys.executable, "-c", _START, json.dumps(sys.path), module, json.dumps(arguments)]
    try:
        # It prints ASCII, and what it is told is no standard input's.
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False,
            env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return Ended(_values(error.stdout or b""), f"it did not end within {seconds:.0f} s")
    except OSError as error:
        return Ended((), f"Python could not be started ({error.strerror})")
    return Ended(_values(done.stdout), _how(done.returncode, done.stderr))


def _values(printed: bytes) -> tuple[Any, ...]:
    found: list[Any] = []
    for line in printed.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # what a library printed, or half a line
            continue
    return tuple(found)


def _how(code: int, printed: bytes) -> str:
    if code == 0:
        return ""
    if code < 0:
        try:
            return f"Python was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"Python was ended by signal {-code}"
    lines: Sequence[str] = printed.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"Python ended with code {code}"
