"""What machine and which libraries a measurement was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from ..runtime.version import version


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, system and library versions as JSON values."""
    libraries: dict[str, str] = {"csd": version()}
    for name in (
        "numpy",
        "onnxruntime",
        "onnxruntime-gpu",
        "torch",
        "tensorrt",
        "tensorrt-rtx",
        "cuda-bindings",
        "cuda-core",
    ):
        try:
            libraries[name] = installed(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": libraries,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


_GPU_FIELDS = (
    "name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu",
    "power.draw", "memory.used",
)  # fmt: skip


def gpu_state() -> dict[str, str] | None:
    """Return what nvidia-smi says of the first GPU: clocks, temperature, power; None without it."""
    query = f"--query-gpu={','.join(_GPU_FIELDS)}"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader", "--id=0"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(_GPU_FIELDS, values, strict=False))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
