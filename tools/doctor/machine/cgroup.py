"""What a container or a service may use: limits of control groups, of version 1 and 2.

A limit holds for a group and all below it, so that the least on the way up counts. In a container
the path that `/proc/self/cgroup` tells may be the host's; the group's own files then lie at the top
of what is mounted, which is looked at in any case.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import PurePosixPath

from .system import System

_ROOT = "/sys/fs/cgroup"
# Version 1 tells "no limit" by a number near the largest that there is.
_UNLIMITED = 1 << 60


def processors(system: System) -> float | None:
    """Processors' worth of time that the limits allow, or None without one."""
    found: list[float] = []
    for folder in _folders(system, ""):
        quota, _, period = (system.text(f"{folder}/cpu.max") or "").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            found.append(int(quota) / int(period))
    for folder in _folders(system, "cpu"):
        quota_us = system.number(f"{folder}/cpu.cfs_quota_us")
        period_us = system.number(f"{folder}/cpu.cfs_period_us")
        if quota_us and period_us:
            found.append(quota_us / period_us)
    return min(found, default=None)


def memory(system: System) -> tuple[int, int] | None:
    """The limit of memory and what is left of it, both in bytes, or None without a limit.

    Pages of files that were not used lately are counted as left: the system takes them back.
    """
    found: list[tuple[int, int]] = []
    for controller, limit_name, used_name in (
        ("", "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        for folder in _folders(system, controller):
            limit = system.number(f"{folder}/{limit_name}")
            if limit is None or limit >= _UNLIMITED:
                continue
            used = system.number(f"{folder}/{used_name}") or 0
            stat = system.fields(f"{folder}/memory.stat", " ")
            idle = stat.get("inactive_file") or stat.get("total_inactive_file") or "0"
            idle_bytes = int(idle) if idle.isdecimal() else 0
            found.append((limit, max(0, limit - max(0, used - idle_bytes))))
    return min(found, key=lambda item: item[1], default=None)


def rounded_up(processors: float) -> int:
    """Threads that so many processors' worth of time keeps busy."""
    return max(1, math.ceil(processors))


def _folders(system: System, controller: str) -> Iterator[str]:
    """Folders of this process's group and those above it, in the tree of a controller.

    Args:
        system: whose files are read.
        controller: of version 1; empty for version 2.
    """
    for line in (system.text("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (controller in controllers.split(",")) if controller else not controllers:
            top = f"{_ROOT}/{controller}" if controller else _ROOT
            group = PurePosixPath(path)
            parts = (str(folder).strip("/") for folder in (group, *group.parents))
            for part in dict.fromkeys(parts):
                if ".." not in part.split("/"):
                    yield f"{top}/{part}".rstrip("/")
