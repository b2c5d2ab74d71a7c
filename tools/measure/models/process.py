"""A process of its own, and the memory that it takes at most."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_EVERY_SECONDS = 0.02
_LEAVE_SECONDS = 20.0


@dataclass(frozen=True)
class Ended:
    """A process that ended.

    Attributes:
        seconds: from its start to its end.
        exit_code: minus the signal that killed it, if one did.
        peak: bytes of its highest resident set; pages of files that it mapped count. Where nobody
            but the system's accounting tells, it is that of the caller at least.
        peak_anonymous: bytes of its highest resident set without such pages, which is what must
            fit into memory, looked at 50 times a second; None where nobody counts them.
        output: what it wrote to stdout.
        said: the error that it printed, else its last line.
    """

    seconds: float
    exit_code: int
    peak: int
    peak_anonymous: int | None
    output: str
    said: str

    @property
    def failure(self) -> str | None:
        """What went wrong, in one line, or None."""
        if self.exit_code == 0:
            return None
        if self.exit_code < 0:
            return f"killed by signal {-self.exit_code}"
        return self.said or f"exit code {self.exit_code}"


def run_watched(argv: Sequence[str], environment: Mapping[str, str]) -> Ended:
    """Run `python ARGV` and watch its memory; it ends with the caller.

    Args:
        argv: after the interpreter.
        environment: what differs from the caller's.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        began, peak, anonymous = time.perf_counter(), 0, 0
        process = subprocess.Popen(
            [sys.executable, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=errors,
            env={**os.environ, **environment},
        )  # fmt: skip
        try:
            while True:
                number, status, usage = os.wait4(process.pid, os.WNOHANG)
                if number:
                    process.returncode = os.waitstatus_to_exitcode(status)
                    break
                memory = _memory(process.pid)
                peak = max(peak, memory.get("VmHWM", 0))
                anonymous = max(anonymous, memory.get("RssAnon", 0))
                time.sleep(_EVERY_SECONDS)
        finally:
            _end(process)
        seconds = time.perf_counter() - began
        output, said = _text(out), _text(errors)
    accounted = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Ended(
        seconds, process.returncode, peak or accounted, anonymous or None, output,
        _last_word(output, said),
    )  # fmt: skip


def _last_word(output: str, said: str) -> str:
    """The error that a command printed; without one the last line, of the results first."""
    errors = [line for line in said.splitlines() if ": error: " in line]
    lines = errors or output.strip().splitlines() or said.strip().splitlines()
    return lines[-1] if lines else ""


def _memory(process: int) -> dict[str, int]:
    """Bytes by name of what the kernel counts of a process; empty where it does not, or no more."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in fields}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, so that it can tidy up."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        process.wait(_LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")
