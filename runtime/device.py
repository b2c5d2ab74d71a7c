"""The CUDA devices of this machine, asked through the driver's own library.

Nothing but the driver is needed, so this works before any CUDA package is installed, and costs
nothing where there is no driver.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import BackendError

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class DeviceInfo:
    """A device, in the words of the manifest.

    Attributes:
        name: as the vendor calls it.
        compute_capability: as `8.7`.
        platform: system and machine, as `linux-aarch64`.
        driver: the latest CUDA version that the driver runs, as `12.6`.
        memory: bytes.
    """

    name: str
    compute_capability: str
    platform: str
    driver: str
    memory: int

    @property
    def architecture(self) -> str:
        """The compute capability as `sm_87`."""
        return architecture(self.compute_capability)


def architecture(compute_capability: str) -> str:
    """`8.7` as `sm_87`."""
    return f"sm_{compute_capability.replace('.', '')}"


def current_platform() -> str:
    """This machine's system and machine, as `linux-x86_64`."""
    return f"{sys.platform}-{platform.machine().lower()}"


def find_device(load: Callable[[str], Any] = ctypes.CDLL) -> DeviceInfo:
    """Return the first CUDA device.

    Args:
        load: opens a shared library.

    Raises:
        BackendError: there is no driver or no device.
    """
    driver, _ = _start(load)
    return _device(driver, 0)


def find_devices(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[DeviceInfo, ...]:
    """Return all CUDA devices that this process may use, the one that csd runs on first.

    Args:
        load: opens a shared library.

    Raises:
        BackendError: there is no driver or no device.
    """
    driver, count = _start(load)
    return tuple(_device(driver, ordinal) for ordinal in range(max(1, count)))


def _start(load: Callable[[str], Any]) -> tuple[Any, int]:
    """Open the driver's library; returns it, and how many devices it has."""
    try:
        driver = load(_DRIVER)
    except OSError as error:
        raise BackendError(
            f"no CUDA driver here ({_DRIVER} is not found): install NVIDIA's driver, or use "
            "--backend onnxruntime"
        ) from error
    count = ctypes.c_int(0)
    _check(driver.cuInit(0))
    _check(driver.cuDeviceGetCount(ctypes.byref(count)))
    return driver, count.value


def _device(driver: Any, ordinal: int) -> DeviceInfo:
    handle, major, minor, version = (ctypes.c_int(0) for _ in range(4))
    memory = ctypes.c_size_t(0)
    name = ctypes.create_string_buffer(256)
    _check(driver.cuDeviceGet(ctypes.byref(handle), ordinal))
    _check(driver.cuDeviceGetName(name, len(name), handle))
    _check(driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle))
    _check(driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle))
    _check(driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle))
    _check(driver.cuDriverGetVersion(ctypes.byref(version)))
    return DeviceInfo(
        name.value.decode(errors="replace"),
        f"{major.value}.{minor.value}",
        current_platform(),
        f"{version.value // 1000}.{version.value % 1000 // 10}",
        memory.value,
    )


def _check(status: int) -> None:
    if status:
        raise BackendError(
            f"the CUDA driver finds no device (error {status}): check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or use --backend onnxruntime"
        )
