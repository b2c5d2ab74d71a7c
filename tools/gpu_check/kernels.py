"""Time of each operator's kernel against a device copy of as many bytes, and of the fused
transition against the same in PyTorch's operators.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ...plugins import build, launch
from ...plugins.launch import DataType
from .part import Outcome, Skipped, device_or_skip

# Enough bytes that a launch is nothing: tens of megabytes a call and more.
ROWS, CHANNELS, WINDOW, TRIES, STEPS = 1 << 18, 16, 8, 4, 100
REPEATS = 30


def check(folder: Path) -> Outcome:
    """Build the kernels into `folder` and time them.

    Raises:
        Skipped: the device, nvcc or the CUDA bindings are missing.
    """
    device = device_or_skip()
    arch = device.compute_capability.replace(".", "")
    try:
        build.find_nvcc()
    except build.BuildError as error:
        raise Skipped(str(error)) from error
    if build.main(["--out", str(folder), "--arch", arch]):
        return Outcome("failed", f"the kernels do not compile for sm_{arch}: see the lines above")
    try:
        loaded = launch.load(folder)
        runtime: Any = importlib.import_module("cuda.bindings.runtime")
    except (launch.LaunchError, ImportError) as error:
        raise Skipped(f"{error}: pip install cuda-core cuda-bindings") from error
    stream = loaded.core.Device().create_stream()
    rows: list[dict[str, Any]] = []
    for dtype in get_args(DataType):
        for name, make in CALLS.items():
            memory = Memory(runtime, dtype)
            call = make(memory)
            seconds = memory.timed(stream, lambda call=call: launch.run(loaded, call, stream))
            copied = memory.timed(stream, lambda memory=memory: memory.copy(stream))
            rows.append(
                {
                    "operator": name, "dtype": dtype, "bytes": memory.size,
                    "seconds": seconds, "gigabytes_per_second": memory.size / seconds / 1e9,
                    "copy_seconds": copied, "share_of_copy_bandwidth": copied / seconds,
                }
            )  # fmt: skip
            memory.free()
    fused = next(row for row in rows if row["operator"] == "transition")
    details = {"rows": rows, "transition": _against_torch(fused["seconds"])}
    return Outcome("passed", "", details)


class Memory:
    """Device arrays of a call, and how many bytes they are.

    Args:
        runtime: `cuda.bindings.runtime`.
        dtype: element type of the fields that are `T`.
    """

    def __init__(self, runtime: Any, dtype: DataType) -> None:
        self._runtime = runtime
        self.dtype: DataType = dtype
        self.size = 0
        self._addresses: list[int] = []
        self._rng = np.random.default_rng(0)
        self._copies: tuple[int, int] | None = None

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._runtime, function)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise RuntimeError(f"{function}: {status}")
        return values[0] if values else None

    def _allocate(self, size: int) -> int:
        self._addresses.append(int(self._call("cudaMalloc", size)))
        return self._addresses[-1]

    def put(self, array: NDArray[Any]) -> int:
        """Copy an array to the device and return its address."""
        dense = np.ascontiguousarray(array)
        self.size += dense.nbytes
        address = self._allocate(dense.nbytes)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", address, dense.ctypes.data, dense.nbytes, kind)
        return address

    def elements(self, *shape: int, positive: bool = False) -> int:
        """Random numbers of the element type."""
        values = self._rng.standard_normal(shape, dtype=np.float32)
        if positive:
            values = np.exp(0.1 * values)
        if self.dtype == "float16":
            return self.put(values.astype(np.float16))
        if self.dtype == "bfloat16":  # the upper half of float32
            return self.put((values.view(np.uint32) >> 16).astype(np.uint16))
        return self.put(values)

    def density(self, *shape: int) -> launch.DensityBuffers:
        """A random density."""
        return launch.DensityBuffers(
            self.elements(*shape), self.elements(*shape, positive=True), self.elements(*shape)
        )

    def normals(self, *shape: int) -> int:
        """Standard normals, float32."""
        return self.put(self._rng.standard_normal(shape, dtype=np.float32))

    def uniforms(self, *shape: int) -> int:
        """Uniforms, float32."""
        return self.put(self._rng.random(shape, dtype=np.float32))

    def integers(self, below: int, *shape: int) -> int:
        """Whole numbers, int32."""
        return self.put(self._rng.integers(below, size=shape, dtype=np.int32))

    def out(self, *shape: int, size: int = 0) -> int:
        """Room for an output of `size` bytes an element; 0 is the element type's."""
        size = size or (4 if self.dtype == "float32" else 2)
        count = int(np.prod(shape)) * size
        self.size += count
        return self._allocate(count)

    def copy(self, stream: Any) -> None:
        """Enqueue a copy on the device that reads and writes as many bytes as the call."""
        half = self.size // 2
        if self._copies is None:
            self._copies = self._allocate(half), self._allocate(half)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        _, handle = stream.__cuda_stream__()
        self._call("cudaMemcpyAsync", *self._copies, half, kind, handle)

    def timed(self, stream: Any, enqueue: Callable[[], None]) -> float:
        """Median seconds between events around what is enqueued, after three warm-ups."""
        _, handle = stream.__cuda_stream__()
        took: list[float] = []
        for repeat in range(REPEATS + 3):
            began, ended = self._call("cudaEventCreate"), self._call("cudaEventCreate")
            self._call("cudaEventRecord", began, handle)
            enqueue()
            self._call("cudaEventRecord", ended, handle)
            self._call("cudaEventSynchronize", ended)
            if repeat >= 3:
                took.append(float(self._call("cudaEventElapsedTime", began, ended)) / 1e3)
            for event in (began, ended):
                self._call("cudaEventDestroy", event)
        return float(np.median(took))

    def free(self) -> None:
        """Give everything back."""
        for address in self._addresses:
            self._call("cudaFree", address)
        self._addresses.clear()


def _accept(memory: Memory) -> launch.Call:
    batch, shape = ROWS // 16, (ROWS // 16, 16, CHANNELS)
    return launch.accept(
        memory.elements(*shape), memory.density(*shape), memory.density(*shape),
        memory.uniforms(*shape[:2]),
        launch.AcceptOutputs(
            memory.out(*shape[:2], size=1), memory.out(*shape[:2], size=4),
            memory.out(batch, size=4), memory.out(batch, size=4),
        ),
        batch=batch, tokens=16, channels=CHANNELS, inner_temperature=42.0, dtype=memory.dtype,
    )  # fmt: skip


def _resample(memory: Memory) -> launch.Call:
    shape = ROWS, CHANNELS
    return launch.resample(
        memory.density(*shape), memory.density(*shape), memory.normals(TRIES, *shape),
        memory.uniforms(TRIES, ROWS),
        launch.ResampleOutputs(
            memory.out(*shape), memory.out(ROWS, size=1), memory.out(ROWS, size=4)
        ),
        tries=TRIES, tokens=ROWS, channels=CHANNELS, dtype=memory.dtype,
    )  # fmt: skip


def _verify_window(memory: Memory) -> launch.Call:
    tokens = ROWS // WINDOW
    shape = tokens, WINDOW, CHANNELS
    buffers = launch.WindowBuffers(
        memory.elements(*shape), memory.elements(*shape), memory.elements(*shape, positive=True),
        memory.elements(*shape), memory.elements(*shape, positive=True),
        memory.uniforms(tokens, WINDOW), memory.integers(STEPS, tokens),
        memory.normals(TRIES, tokens, CHANNELS), memory.uniforms(TRIES, tokens),
    )  # fmt: skip
    out = launch.WindowOutputs(
        memory.out(tokens, size=4), memory.out(tokens, size=4), memory.out(tokens, CHANNELS),
        memory.out(tokens, size=4),
    )  # fmt: skip
    return launch.verify_window(
        buffers, out, tokens=tokens, window=WINDOW, channels=CHANNELS, tries=TRIES,
        dtype=memory.dtype,
    )  # fmt: skip


def _transition(memory: Memory) -> launch.Call:
    shape = ROWS, CHANNELS
    buffers = launch.TransitionBuffers(
        memory.elements(*shape), memory.elements(*shape), memory.elements(*shape), 0, 0,
        memory.normals(*shape), memory.integers(STEPS, ROWS), memory.uniforms(STEPS, 6),
    )  # fmt: skip
    out = launch.TransitionOutputs(
        memory.out(*shape), *(memory.out(*shape, size=4) for _ in range(3))
    )
    return launch.transition(
        buffers, out, rows=ROWS, channels=CHANNELS, steps=STEPS, dtype=memory.dtype
    )


CALLS: dict[str, Callable[[Memory], launch.Call]] = {
    "accept": _accept,
    "resample": _resample,
    "verify_window": _verify_window,
    "transition": _transition,
}


def _against_torch(fused: float) -> dict[str, Any]:
    """Time the transition in PyTorch's operators, float32, with the sizes of the kernel's call."""
    try:
        import torch
    except ImportError as error:
        return {"skipped": f"{error.name} is not installed: pip install torch"}
    if not torch.cuda.is_available():
        return {"skipped": f"PyTorch {torch.__version__} has no CUDA"}
    x, eps, v, noise = (torch.randn(ROWS, CHANNELS, device="cuda") for _ in range(4))
    step = torch.randint(STEPS, (ROWS,), device="cuda")
    tables = torch.rand(STEPS, 6, device="cuda")

    def plain() -> Sequence[torch.Tensor]:
        recip, recipm1, coef_x0, coef_x, base, slope = tables[step].unsqueeze(-1).unbind(1)
        x0hat = recip * x - recipm1 * eps
        mean = coef_x0 * x0hat + coef_x * x
        log_std = base + slope * v
        moved = mean + (step != 0).float().unsqueeze(1) * torch.exp(log_std) * noise
        return moved, mean, log_std, x0hat

    took: list[float] = []
    for repeat in range(REPEATS + 3):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        plain()
        ended.record()
        torch.cuda.synchronize()
        if repeat >= 3:
            took.append(began.elapsed_time(ended) / 1e3)
    seconds = float(np.median(took))
    return {
        "fused_seconds": fused,
        "torch_operators_seconds": seconds,
        "times_faster": seconds / fused,
    }
