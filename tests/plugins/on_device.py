"""Kernels on a CUDA device, with memory that the host reads too: what the `gpu` tests run on."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csd.plugins import build, launch
from csd.runtime.device import find_device
from csd.runtime.errors import BackendError


class DeviceKernels:
    """Built for the first device. Arrays live as long as this object."""

    def __init__(self, folder: Path) -> None:
        try:
            device = find_device()
            from cuda.bindings import runtime
        except (BackendError, ImportError) as error:
            pytest.skip(str(error))
        arch = device.compute_capability.replace(".", "")
        if build.main(["--out", str(folder), "--arch", arch]):
            pytest.skip("the kernels cannot be built here: see the lines above")
        self._loaded, self._cuda = launch.load(folder), runtime
        self._stream = self._loaded.core.Device().create_stream()

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._cuda, function)(*arguments)
        assert status == self._cuda.cudaError_t.cudaSuccess, f"{function}: {status}"
        return values[0] if values else None

    def array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return managed memory: the address is the same for the host and the device."""
        size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        address = int(self._call("cudaMallocManaged", size, self._cuda.cudaMemAttachGlobal))
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return raw[: int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def run(self, call: launch.Call, blocks: int | None = None) -> int:
        """Run a call and wait for it; returns 0, as the emulator does."""
        launch.run(self._loaded, dataclasses.replace(call, blocks=blocks or call.blocks),
                   self._stream)  # fmt: skip
        self._stream.sync()
        return 0
