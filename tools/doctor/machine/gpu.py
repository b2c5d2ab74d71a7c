"""CUDA devices and their driver. A GPU is not needed: what is missing here is a note."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ....runtime.device import DeviceInfo, find_devices
from ....runtime.errors import BackendError
from ...machine import gpu_state
from ..check import NOTE, OK, Check, split_message
from .system import System

AREA = "GPU"
Find = Callable[[], tuple[DeviceInfo, ...]]


def gpu_checks(system: System, find: Find = find_devices) -> list[Check]:
    """Look for devices.

    Args:
        system: whose files are read.
        find: asks the driver.
    """
    checks: list[Check] = []
    if driver := _driver(system):
        checks.append(Check(AREA, "driver", OK, driver))
    if toolkit := _toolkit(system):
        checks.append(Check(AREA, "CUDA toolkit", OK, toolkit))
    try:
        devices = find()
    except BackendError as error:
        reason, remedy = split_message(str(error))
        finding = "none; graphs run on the processor"
        return [*checks, Check(AREA, "devices", NOTE, finding, reason, remedy)]
    for number, device in enumerate(devices):
        finding = (
            f"{device.name}, {device.architecture}, {device.memory / 1e9:.1f} GB; the driver runs "
            f"CUDA {device.driver}"
        )
        if number:
            finding += "; csd runs on the first device"
        checks.append(Check(AREA, f"device {number}", OK, finding))
    return checks


def _driver(system: System) -> str | None:
    """The driver's own version."""
    text = system.text("/proc/driver/nvidia/version") or ""
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+[\d.]*)", text)
    if found is not None:
        return found[1]
    state = gpu_state() if system.own else None
    return None if state is None else state.get("driver_version")


def _toolkit(system: System) -> str | None:
    """The version of the CUDA that the system has, which no engine needs."""
    try:
        values: Any = json.loads(system.text("/usr/local/cuda/version.json") or "{}")
        return str(values["cuda"]["version"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
