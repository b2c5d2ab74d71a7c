"""How busy the machine was beside a measurement: a figure of a busy machine does not repeat.

The kernel counts the time that each processor was busy, and each process's own share of it: the
difference is what others took, in cores. It is taken of the processors that this process may use.
Where there is no `/proc/stat` only the load average is known.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAT = Path("/proc/stat")
# Cores that others may take without a warning: what an idle system does, and the clocks' grain.
SLACK = 0.25
# Of /proc/stat: user, nice, system, irq, softirq, steal; between them lie idle and iowait. What a
# guest took is in `user` already.
_BUSY = (0, 1, 2, 5, 6, 7)


@dataclass(frozen=True)
class Load:
    """What went on beside this process in a span of time.

    Attributes:
        others: cores that other processes kept busy, on average; None where nobody counts them.
        average: the system's load average of one minute at the end, own threads included; None
            where there is none.
    """

    others: float | None
    average: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return the load as JSON values."""
        return {"other_processes_cores": self.others, "load_average": self.average}


class LoadMeter:
    """Measures the load from when it is made."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.perf_counter(), busy_seconds(), own_seconds()

    def read(self) -> Load:
        """The load since the beginning."""
        took, busy = time.perf_counter() - self._began, busy_seconds()
        if busy is None or self._busy is None or took <= 0:
            return Load(None, load_average())
        others = (busy - self._busy) - (own_seconds() - self._own)
        return Load(max(0.0, others / took), load_average())


def idle_load(seconds: float = 0.3) -> Load:
    """Measure the load while this process does nothing."""
    meter = LoadMeter()
    time.sleep(seconds)
    return meter.read()


def cores() -> int:
    """How many processors this process may use."""
    return len(_processors())


def _processors() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def busy_seconds(stat: Path = STAT) -> float | None:
    """Seconds that the processors were busy since the system started, or None."""
    wanted = {f"cpu{number}" for number in _processors()}
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
        rows = [fields[1:] for fields in map(str.split, lines) if fields and fields[0] in wanted]
        busy = sum(int(row[at]) for row in rows for at in _BUSY if at < len(row))
        return busy / os.sysconf("SC_CLK_TCK") if rows else None
    except (OSError, ValueError, AttributeError):
        return None


def own_seconds() -> float:
    """Processor seconds of this process, its threads, and children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def load_average() -> float | None:
    """The system's load average of one minute, or None."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def busy_warning(before: Load, during: Load | None, threads: int, available: int) -> str | None:
    """Say in one line why figures will not repeat, or return None where nothing is known.

    Args:
        before: of the machine without this process's work.
        during: of the measurement, or None before it.
        threads: that the measurement uses at most.
        available: cores that there are.
    """
    others = [load.others for load in (before, during) if load and load.others is not None]
    if others and max(others) + threads > available + SLACK:
        reason = (
            f"other processes kept {max(others):.1f} of {available} cores busy beside {threads} "
            f"thread{'s' if threads > 1 else ''} of ours"
        )
    elif before.average is not None and before.average > available:
        reason = f"the load average was {before.average:.1f} before, above {available} cores"
    else:
        return None
    return f"{reason}: these figures will not repeat; measure again on a quiet machine"


def load_report(before: Load, during: Load, threads: int) -> dict[str, Any]:
    """Return the load before and during a measurement as JSON values, with its warning."""
    available = cores()
    return {
        "cores": available,
        "before": before.to_dict(),
        "during": during.to_dict(),
        "warning": busy_warning(before, during, threads, available),
    }


def load_caption(report: dict[str, Any]) -> str:
    """Return what a table says of the load."""

    def shown(name: str, digits: int = 2) -> Sequence[str]:
        values = (report[span][name] for span in ("before", "during"))
        return ["unknown" if value is None else f"{value:.{digits}f}" for value in values]

    others, averages = shown("other_processes_cores"), shown("load_average")
    lines = [
        f"other processes: {others[0]} of {report['cores']} cores before, {others[1]} during; "
        f"load average {averages[0]} and {averages[1]}"
    ]
    if report["warning"]:
        lines.append(f"WARNING: {report['warning']}")
    return "\n".join(lines)
