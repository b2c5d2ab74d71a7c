"""Memory, copies, streams, events and CUDA graphs, through `cuda.bindings.runtime`.

Every failure becomes one line with CUDA's own words.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ...libraries.imports import import_library

Bytes = NDArray[np.uint8]


class CaptureError(Exception):
    """A call could not be recorded as a CUDA graph; the stream is as before."""


class Cuda:
    """The functions of the CUDA runtime that the backend uses, on the first device.

    Args:
        driver: the latest CUDA version that the driver runs, as `12.6`.

    Raises:
        BackendError: the bindings are missing or too new for the driver, or there is no device.
    """

    def __init__(self, driver: str) -> None:
        self._rt: Any = import_library("cuda.bindings.runtime", kind=BackendError)
        major = driver.split(".")[0]
        if int(self.runtime_version().split(".")[0]) > int(major):
            raise BackendError(
                f"cuda.bindings is for CUDA {self.runtime_version()}, the driver runs {driver}: "
                f"pip install 'cuda-bindings=={major}.*', or update the driver"
            )
        self._call("cudaSetDevice", 0)

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._rt, function)(*arguments)
        if status != self._rt.cudaError_t.cudaSuccess:
            raise BackendError(f"{function} failed ({self._message(status)}): check nvidia-smi")
        return values[0] if values else None

    def _message(self, status: Any) -> str:
        _, text = self._rt.cudaGetErrorString(status)
        text = text.decode() if isinstance(text, bytes) else str(text)
        return " ".join(text.split())

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of device memory.

        Raises:
            BackendError: there is not so much.
        """
        status, address = self._rt.cudaMalloc(size)
        if status != self._rt.cudaError_t.cudaSuccess:
            self._forget_error()
            _, free, _ = self._rt.cudaMemGetInfo()
            raise BackendError(
                f"the device has no {size >> 20} MB left ({self._message(status)}; "
                f"{(free or 0) >> 20} MB are free): give --memory-limit MB, or fewer images at once"
            )
        return int(address)

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._call("cudaFree", address)

    def allocate_pinned(self, size: int) -> Bytes:
        """Return `size` bytes of page-locked host memory; free them with `free_pinned`."""
        address = int(self._call("cudaHostAlloc", size, 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, memory: Bytes) -> None:
        """Give page-locked memory back; the array must not be used any more."""
        self._call("cudaFreeHost", memory.ctypes.data)

    def to_device(self, address: int, memory: Bytes, stream: Stream) -> None:
        """Enqueue a copy from page-locked memory."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, memory.ctypes.data, memory.nbytes, kind, stream)

    def to_host(self, memory: Bytes, address: int, stream: Stream) -> None:
        """Enqueue a copy to page-locked memory."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(memory.ctypes.data, address, memory.nbytes, kind, stream)

    def _copy(self, to: int, source: int, size: int, kind: Any, stream: Stream) -> None:
        if size:
            self._call("cudaMemcpyAsync", to, source, size, kind, stream.handle)

    def stream(self) -> Stream:
        """Return a new stream, apart from the default one."""
        return Stream(self, self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking))

    def synchronize(self, stream: Any) -> None:
        """Wait for all that was enqueued."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: Any) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)

    def event(self) -> Any:
        """Return a new event, which notes the time when the device gets to it."""
        return self._call("cudaEventCreate")

    def record(self, event: Any, stream: Stream) -> None:
        """Enqueue an event."""
        self._call("cudaEventRecord", event, stream.handle)

    def seconds_between(self, first: Any, last: Any) -> float:
        """Wait for the second of two events; returns the seconds since the first."""
        self._call("cudaEventSynchronize", last)
        return float(self._call("cudaEventElapsedTime", first, last)) / 1e3

    def destroy_event(self, event: Any) -> None:
        """Destroy an event."""
        self._call("cudaEventDestroy", event)

    def begin_capture(self, stream: Stream) -> None:
        """Start to record what this thread enqueues in place of running it."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream.handle, mode)

    def end_capture(self, stream: Stream) -> Any:
        """Return what was recorded, ready to be launched.

        Raises:
            CaptureError: something in between cannot be recorded.
        """
        success = self._rt.cudaError_t.cudaSuccess
        status, graph = self._rt.cudaStreamEndCapture(stream.handle)
        if status != success:
            raise self._capture_error(status)
        status, executable = self._rt.cudaGraphInstantiate(graph, 0)
        self._call("cudaGraphDestroy", graph)
        if status != success:
            raise self._capture_error(status)
        return executable

    def _capture_error(self, status: Any) -> CaptureError:
        self._forget_error()
        return CaptureError(self._message(status))

    def _forget_error(self) -> None:
        # Or the library would find this error at its next call, and take it for its own.
        self._rt.cudaGetLastError()

    def launch(self, executable: Any, stream: Stream) -> None:
        """Enqueue a recorded graph."""
        self._call("cudaGraphLaunch", executable, stream.handle)

    def destroy_graph(self, executable: Any) -> None:
        """Destroy a recorded graph."""
        self._call("cudaGraphExecDestroy", executable)

    def runtime_version(self) -> str:
        """Version of the CUDA runtime that the bindings were made for."""
        version = int(self._call("cudaRuntimeGetVersion"))
        return f"{version // 1000}.{version % 1000 // 10}"


class Stream:
    """An order of work on the device."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self._cuda, self.handle = cuda, handle

    def __cuda_stream__(self) -> tuple[int, int]:
        """The protocol by which other libraries use this stream."""
        return 0, int(self.handle)

    def synchronize(self) -> None:
        """Wait for all that was enqueued."""
        self._cuda.synchronize(self.handle)

    def close(self) -> None:
        """Destroy the stream."""
        self._cuda.destroy_stream(self.handle)


class EventClock:
    """See `DeviceClock`: two events on a stream, made once and recorded for every run.

    Args:
        cuda: the CUDA runtime.
        stream: on which the work is enqueued.
    """

    def __init__(self, cuda: Cuda, stream: Stream) -> None:
        self._cuda, self._stream = cuda, stream
        self._first, self._last = cuda.event(), cuda.event()

    def start(self) -> None:
        """See `DeviceClock.start`."""
        self._cuda.record(self._first, self._stream)

    def stop(self) -> float:
        """See `DeviceClock.stop`."""
        self._cuda.record(self._last, self._stream)
        return self._cuda.seconds_between(self._first, self._last)

    def close(self) -> None:
        """Destroy the events."""
        for event in (self._first, self._last):
            self._cuda.destroy_event(event)
