"""The CUDA device of this machine, asked through the driver alone: no package is needed."""

from __future__ import annotations

import ctypes
import sys

from ..runtime.errors import ExportError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def compute_capability() -> int:
    """Return the compute capability of device 0, as 87 for 8.7.

    Raises:
        ExportError: there is no driver or no device.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError as error:
        raise _no_device(f"no CUDA driver: {error}") from error
    major, minor, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
    )
    for call in calls:
        if code := call():
            raise _no_device(f"CUDA error {code}")
    return 10 * major.value + minor.value


def _no_device(reason: str) -> ExportError:
    return ExportError(
        f"tensorrt builds for the device that it runs on, and none is here ({reason}): copy the "
        "bundle to the device and run csd-export --rebuild BUNDLE --backend tensorrt there"
    )
