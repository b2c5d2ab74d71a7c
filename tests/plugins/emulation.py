"""Compile the CUDA kernels' source for the CPU, and run a launch of `csd.plugins.launch` there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csd.plugins import build, launch

HERE = Path(__file__).resolve().parent


def _cuda_headers() -> Path | None:
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    with contextlib.suppress(build.BuildError):
        homes.append(str(Path(build.find_nvcc()).resolve().parent.parent))
    homes += sorted(map(str, Path("/usr/local").glob("cuda-*")))
    folders = (Path(home) / "include" for home in homes if home)
    return next((folder for folder in folders if (folder / "cuda_fp16.h").is_file()), None)


def compile_emulated(out: Path, kernels: Path = build.SOURCES, *, half: bool = False) -> Any:
    try:
        compiler = build.host_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    # Fibers jump between stacks, which a compiler that checks jumps takes for an error.
    flags = ["-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", f"-I{kernels}"]
    if half:
        headers = _cuda_headers()
        if headers is None:
            pytest.skip("cuda_fp16.h is not found: install the CUDA toolkit or set CUDA_HOME")
        flags += ["-DCSD_HALF", f"-isystem{headers}"]
    source = str(HERE / "emulated_kernels.cpp")
    subprocess.run([*compiler, *flags, source, "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


def plant(folder: Path, changes: dict[str, str]) -> Path:
    """Copy the kernels' source with a bug: each text that is named is replaced by another."""
    missing = set(changes)
    for path in build.SOURCES.glob("*.[hc]*"):
        text = path.read_text(encoding="utf-8")
        for right, wrong in changes.items():
            missing -= {right} if right in text else set()
            text = text.replace(right, wrong)
        (folder / path.name).write_text(text, encoding="utf-8")
    assert not missing, f"the source has no {missing}"
    return folder


def emulate(library, call, *, blocks=None):
    """Run a call whose buffers are addresses on this machine; returns 0 if no thread hangs."""
    pointers = []
    for argument in call.arguments:
        kind = {np.int32: ctypes.c_int32, np.float32: ctypes.c_float}.get(type(argument))
        pointers.append((kind or ctypes.c_void_p)(argument if kind is None else argument.item()))
    table = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(p) for p in pointers))
    function = getattr(library, f"emulate_{call.kernel}")
    return function(blocks or call.blocks, launch.THREADS, table)


class EmulatedKernels:
    """Kernels that were compiled for this processor."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def array(self, shape, dtype) -> np.ndarray:
        """Memory that the kernels reach."""
        return np.empty(shape, dtype)

    def run(self, call: launch.Call, blocks: int | None = None) -> int:
        """See `emulate`."""
        return emulate(self._library, call, blocks=blocks)
