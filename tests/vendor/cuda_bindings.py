# ruff: noqa: N802, N815
"""A stand-in for `cuda.bindings.runtime`: device memory is host memory, found by its address.

Work on a stream is done when somebody waits for the stream, not before, so that a wait that is
missing or host memory that is written too early gives other numbers. New memory is full of NaN.
Memory is found by address only while it is allocated.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import time
import types

import numpy as np

ALIGNMENT = 256


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class CopyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = Error.cudaSuccess
STREAM_NON_BLOCKING = 1
ENUMERATIONS = {
    "cudaError_t": Error, "cudaMemcpyKind": CopyKind, "cudaStreamCaptureMode": CaptureMode,
}  # fmt: skip


class Stream:
    def __init__(self):
        self.queue = []
        self.captured = None
        self.invalid = False

    def push(self, work):
        (self.queue if self.captured is None else self.captured).append(work)


class FakeCuda:
    """The state behind the module; `module` is what is imported.

    Attributes:
        free: bytes of device memory left.
        captures: False lets every capture fail.
        waits: how often somebody waited for a stream.
        launches: launches of recorded graphs.
        milliseconds: what a piece of work takes by the device's clock, unless it returns that.
        events: when the device got to each event, or None.
        copies: copies that were asked for, as (kind, bytes).
    """

    def __init__(self, capacity=1 << 30):
        self.free, self.captures = capacity, True
        self.waits = self.launches = 0
        self.milliseconds, self.now = 1.0, 0.0
        self.last = OK
        self.version = 12060
        self.copies = []
        self.device, self.pinned, self.streams, self.graphs = {}, {}, {}, {}
        self.events = {}
        self._handles = itertools.count(1000)
        self.module = types.ModuleType("cuda.bindings.runtime")
        for name, enumeration in ENUMERATIONS.items():
            setattr(self.module, name, enumeration)
        self.module.cudaStreamNonBlocking = STREAM_NON_BLOCKING
        for name in functions(FakeCuda):
            setattr(self.module, name, getattr(self, name))

    def memory(self, address, size, where=None):
        """The bytes at an address, which must be allocated as a whole."""
        for blocks in (self.device, self.pinned) if where is None else (where,):
            for start, block in blocks.items():
                if start <= address and address + size <= start + block.size:
                    return block[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address} are not allocated there")

    def _new(self, blocks, size):
        raw = np.full(size + ALIGNMENT, 0xFF, dtype=np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        block = raw[start : start + size]
        blocks[block.ctypes.data] = block
        return block.ctypes.data

    def cudaSetDevice(self, ordinal):
        assert ordinal == 0
        return (OK,)

    def cudaGetErrorString(self, error):
        return OK, error.name.encode()

    def cudaGetLastError(self):
        last, self.last = self.last, OK
        return (last,)

    def cudaRuntimeGetVersion(self):
        return OK, self.version

    def cudaMemGetInfo(self):
        return OK, self.free, 1 << 30

    def cudaMalloc(self, size):
        assert size > 0
        if size > self.free:
            self.last = Error.cudaErrorMemoryAllocation
            return Error.cudaErrorMemoryAllocation, None
        self.free -= size
        return OK, self._new(self.device, size)

    def cudaFree(self, address):
        self.free += self.device.pop(address).size
        return (OK,)

    def cudaHostAlloc(self, size, flags):
        assert size > 0
        assert flags == 0
        return OK, self._new(self.pinned, size)

    def cudaFreeHost(self, address):
        del self.pinned[address]
        return (OK,)

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        inward = kind == CopyKind.cudaMemcpyHostToDevice
        ends = (self.device, self.pinned) if inward else (self.pinned, self.device)
        self.copies.append((kind, size))

        def copy():
            self.memory(to, size, ends[0])[:] = self.memory(source, size, ends[1])

        self.memory(to, size, ends[0]), self.memory(source, size, ends[1])  # both ends exist
        self.streams[stream].push(copy)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == 1
        handle = next(self._handles)
        self.streams[handle] = Stream()
        return OK, handle

    def cudaStreamDestroy(self, stream):
        assert not self.streams.pop(stream).queue
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        own = self.streams[stream]
        if own.captured is not None:
            own.invalid = True
            return (Error.cudaErrorStreamCaptureUnsupported,)
        self.waits += 1
        queue, own.queue = own.queue, []
        for work in queue:
            took = work()
            self.now += self.milliseconds if took is None else took
        return (OK,)

    def cudaEventCreate(self):
        handle = next(self._handles)
        self.events[handle] = None
        return OK, handle

    def cudaEventRecord(self, event, stream):
        assert event in self.events
        own = self.streams[stream]
        assert own.captured is None

        def note():
            self.events[event] = self.now
            return 0.0

        own.queue.append(note)
        return (OK,)

    def cudaEventSynchronize(self, event):
        assert event in self.events
        for stream in self.streams:
            self.cudaStreamSynchronize(stream)
        return (OK,)

    def cudaEventElapsedTime(self, start, end):
        return OK, self.events[end] - self.events[start]

    def cudaEventDestroy(self, event):
        del self.events[event]
        return (OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        assert mode == CaptureMode.cudaStreamCaptureModeThreadLocal
        own = self.streams[stream]
        assert own.captured is None
        own.captured, own.invalid = [], not self.captures
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        own = self.streams[stream]
        work, own.captured = own.captured, None
        assert work is not None
        if own.invalid:
            self.last = Error.cudaErrorStreamCaptureInvalidated
            return Error.cudaErrorStreamCaptureInvalidated, None
        handle = next(self._handles)
        self.graphs[handle] = work
        return OK, handle

    def cudaGraphInstantiate(self, graph, flags):
        handle = next(self._handles)
        self.graphs[handle] = list(self.graphs[graph])
        return OK, handle

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return (OK,)

    def cudaGraphLaunch(self, executable, stream):
        self.launches += 1
        for work in self.graphs[executable]:
            self.streams[stream].push(work)
        return (OK,)

    def cudaGraphExecDestroy(self, executable):
        del self.graphs[executable]
        return (OK,)


class ImmediateCuda:
    """The module on host memory, which does at once what it is asked for."""

    cudaError_t, cudaMemcpyKind = Error, CopyKind

    def __init__(self):
        self.blocks = {}

    def cudaMalloc(self, size):
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cudaFree(self, address):
        del self.blocks[address]
        return (OK,)

    def cudaMemcpy(self, to, source, size, kind):
        ctypes.memmove(to, source, size)
        return (OK,)

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        return self.cudaMemcpy(to, source, size, kind)

    def cudaEventCreate(self):
        return OK, [0.0]

    def cudaEventRecord(self, event, stream):
        event[0] = time.perf_counter()
        return (OK,)

    def cudaEventSynchronize(self, event):
        return (OK,)

    def cudaEventElapsedTime(self, began, ended):
        return OK, 1e3 * (ended[0] - began[0])

    def cudaEventDestroy(self, event):
        return (OK,)


def functions(stand_in):
    """Names of the functions that a stand-in has."""
    return [n for n, value in vars(stand_in).items() if n[:4] == "cuda" and callable(value)
            and not isinstance(value, type)]  # fmt: skip
