"""Memory and disks: what is free, and what a limit leaves of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ....runtime.command.cache import VARIABLE, cache_folder
from ..check import NOTE, OK, PROBLEM, Check
from . import cgroup
from .system import System

AREA = "memory and disk"
# What Python, NumPy and ONNX Runtime take before a network is loaded (`estimate.BASE_BYTES`), with
# room to work in.
LEAST_MEMORY = 150_000_000
# What the cache takes at most where engines of TensorRT-RTX are compiled, and something more.
LEAST_DISK = 200_000_000


def memory_checks(system: System) -> list[Check]:
    """Look at the memory."""
    info = system.fields("/proc/meminfo")
    total, free = _bytes(info.get("MemTotal")), _bytes(info.get("MemAvailable"))
    if free is None:
        return [Check(AREA, "memory", NOTE, "unknown: the system does not tell it")]
    finding = f"{_gb(free)} available" + (f" of {_gb(total)}" if total else "")
    limit = cgroup.memory(system)
    if limit is not None and (total is None or limit[0] < total):
        finding += f"; the control group has {_gb(limit[1])} left of {_gb(limit[0])}"
    left = available_memory(system)
    if left is not None and left < LEAST_MEMORY:
        return [Check(
            AREA, "memory", PROBLEM, finding,
            f"Python and the libraries alone take about {LEAST_MEMORY / 1e6:.0f} MB",
            "close other programs, or raise the container's limit of memory",
        )]  # fmt: skip
    return [Check(AREA, "memory", OK, finding)]


def available_memory(system: System) -> int | None:
    """Bytes of memory that this process can still have, or None where nobody tells."""
    free = _bytes(system.fields("/proc/meminfo").get("MemAvailable"))
    limit = cgroup.memory(system)
    known = [value for value in (free, None if limit is None else limit[1]) if value is not None]
    return min(known, default=None)


def disk_checks(bundle: Path | None) -> list[Check]:
    """Look at the disk of the cache, and of a bundle."""
    checks = [_cache(cache_folder())]
    if bundle is not None:
        checks.append(_disk("disk of the bundle", bundle))
    return checks


def _cache(folder: Path | None) -> Check:
    remedy = f"export {VARIABLE}=DIR, of a folder that you may write to"
    reason = (
        "files of a bundle are hashed again each time, and TensorRT-RTX compiles its kernels again"
    )
    if folder is None:
        return Check(AREA, "cache", NOTE, "this user has no home for it", reason, remedy)
    there = _nearest(folder)
    effective = os.access in os.supports_effective_ids
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK, effective_ids=effective):
        return Check(AREA, "cache", NOTE, f"{folder} cannot be written", reason, remedy)
    return _disk("cache", folder)


def _disk(name: str, folder: Path) -> Check:
    try:
        free = shutil.disk_usage(_nearest(folder)).free
    except OSError as error:
        return Check(AREA, name, NOTE, f"{folder}: {error.strerror}")
    finding = f"{folder}, {_gb(free)} free"
    if free < LEAST_DISK:
        return Check(AREA, name, NOTE, finding, "engines and caches may not fit")
    return Check(AREA, name, OK, finding)


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path("/"))


def _bytes(text: str | None) -> int | None:
    """Read `16315744 kB`."""
    number = (text or "").partition(" ")[0]
    return int(number) * 1024 if number.isdecimal() else None


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
