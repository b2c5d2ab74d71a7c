"""Memory of a session on the device: one arena for all graphs, because they take turns.

| block | holds | lives |
| --- | --- | --- |
| kept | what a call leaves on the device (`mods`) | until a call keeps something again |
| of a lasting graph, by its name | what it leaves (caches) | until it keeps something again |
| turn | inputs, outputs and scratch of the graph that runs | until the next call |
| rounds | chains of a head sampler that runs on the device (`rounds.py`) | until it ends |

All grow on demand, which forgets their contents and every address; `Arena.version` counts that.
Each graph has page-locked host memory of its own for what crosses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import TensorSpec
from ...errors import BackendError
from ..shapes import shape_of
from .cuda import Bytes, Cuda, Stream

ALIGNMENT = 256
KEPT = "kept"
BLOCKS = (KEPT, "turn", "rounds")
_ITEM_BYTES = {"bfloat16": 2}


def aligned(size: int) -> int:
    """The least multiple of `ALIGNMENT` that holds `size` bytes."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def tensor_bytes(tensor: TensorSpec, dims: Mapping[str, int]) -> int:
    """Bytes of a tensor at given sizes of the named dimensions."""
    item = _ITEM_BYTES.get(tensor.dtype) or np.dtype(tensor.dtype).itemsize
    return int(np.prod(shape_of(tensor, dims), dtype=np.int64)) * item


@dataclass(frozen=True)
class Layout:
    """Tensors one after another: the offset of each, and the bytes of all."""

    offsets: Mapping[str, int]
    size: int

    @classmethod
    def of(cls, tensors: Iterable[TensorSpec], dims: Mapping[str, int]) -> Layout:
        """Lay tensors out, each aligned."""
        offsets: dict[str, int] = {}
        size = 0
        for tensor in tensors:
            offsets[tensor.name] = size
            size += aligned(tensor_bytes(tensor, dims))
        return cls(offsets, size)


@dataclass(frozen=True, eq=False)
class KeptTensor:
    """An output that stayed on the device.

    Attributes:
        shape: its dimensions.
        dtype: of the manifest.
        address: on the device.
        generation: of the block when it was written.
        block: of the arena, which holds it.
    """

    shape: tuple[int, ...]
    dtype: str
    address: int
    generation: int
    block: str = KEPT


class Arena:
    """Device memory that all graphs of a session share.

    Args:
        cuda: the CUDA runtime.
        stream: on which all graphs run.
        limit: bytes that weights and all blocks may take, or None.

    Attributes:
        weights: bytes that engines take besides.
        version: counts changes of addresses.
        peak: bytes of all blocks at most.
    """

    def __init__(self, cuda: Cuda, stream: Stream, limit: int | None = None) -> None:
        self._cuda, self._stream = cuda, stream
        self.limit = limit
        self.weights = 0
        self._blocks: dict[str, tuple[int, int]] = dict.fromkeys(BLOCKS, (0, 0))
        self._generations: dict[str, int] = {}  # of what is kept, by block
        self.version = 0
        self.peak = 0

    @property
    def available(self) -> int | None:
        """Bytes that the limit leaves for all blocks, or None without a limit."""
        return None if self.limit is None else self.limit - self.weights

    def address(self, block: str) -> int:
        """Where a block begins."""
        return self._block(block)[0]

    def _block(self, name: str) -> tuple[int, int]:
        """Address and size of a block; one that was never asked for is empty."""
        return self._blocks.get(name, (0, 0))

    def renew(self, **sizes: int) -> None:
        """As `reserve`, between runs: blocks of earlier runs go where they leave no room.

        Raises:
            BackendError: the limit or the device does not allow it.
        """
        names = {**self._blocks, **sizes}
        total = sum(max(sizes.get(name, 0), self._block(name)[1]) for name in names)
        if self.available is not None and total > self.available:
            self.clear()
        self.reserve(**sizes)

    def reserve(self, **sizes: int) -> None:
        """Make blocks at least so large, or empty where that fails; the others stay as they are.

        Raises:
            BackendError: the limit or the device does not allow it.
        """
        grown = {name: size for name, size in sizes.items() if size > self._block(name)[1]}
        if not grown:
            return
        total = sum(grown.get(name, self._block(name)[1]) for name in {**self._blocks, **grown})
        if self.available is not None and total > self.available:
            raise out_of_limit(self.weights + total, self.limit or 0)
        self._stream.synchronize()
        for name in grown:
            self.next_generation(name)
        # Freed first: both at once may be more than the device has.
        self._free(grown)
        try:
            for name, size in grown.items():
                self._blocks[name] = self._cuda.allocate(size), size
        except BaseException:
            self._free(grown)  # half of a reservation is of no use, and others may need its bytes
            raise
        self.peak = max(self.peak, total)

    def _free(self, names: Iterable[str]) -> None:
        for name in names:
            address, size = self._block(name)
            if size:
                self._cuda.free(address)
                self.version += 1  # an empty block has no addresses to forget
            self._blocks[name] = (0, 0)

    def next_generation(self, block: str = KEPT) -> int:
        """Declare what a block kept as overwritten; returns the number of what follows."""
        self._generations[block] = self._generations.get(block, 0) + 1
        return self._generations[block]

    def check(self, tensor: KeptTensor) -> None:
        """Check that its block kept nothing since.

        Raises:
            RuntimeError: the tensor was overwritten.
        """
        if tensor.generation != self._generations.get(tensor.block):
            raise RuntimeError("a kept tensor was overwritten: a later call kept another one")

    def clear(self) -> None:
        """Free all blocks."""
        self._stream.synchronize()
        names = [*self._blocks]
        self._free(names)
        for name in names:
            self.next_generation(name)


def out_of_limit(needed: int, limit: int) -> BackendError:
    """The error of a memory limit that is too low."""
    return BackendError(
        f"this run needs {-(-needed >> 20)} MB of device memory, the limit is {limit >> 20} MB: "
        f"give --memory-limit {-(-needed >> 20)}, or fewer images, a lower gamma or fewer head "
        "steps"
    )


class Staging:
    """Page-locked host memory of one graph: what goes in, and what comes out.

    A call that returns before the device has read its inputs has kept all its outputs. The graph's
    next call may write over those inputs: it also replaces what the first one kept.
    """

    def __init__(self, cuda: Cuda, stream: Stream) -> None:
        self._cuda, self._stream = cuda, stream
        self._inputs: Bytes | None = None
        self._outputs: Bytes | None = None
        self.version = 0

    def reserve(self, inputs: int, outputs: int) -> None:
        """Make both sides at least so large; a change forgets their contents and addresses."""
        have = [0 if side is None else side.nbytes for side in (self._inputs, self._outputs)]
        if inputs <= have[0] and outputs <= have[1]:
            return
        sizes = max(inputs, have[0]), max(outputs, have[1])
        self.close()
        self.version += 1  # also where there is no more: what was here is gone
        self._inputs, self._outputs = (
            self._cuda.allocate_pinned(max(ALIGNMENT, size)) for size in sizes
        )

    def inputs(self, size: int) -> Bytes:
        """The first `size` bytes of what goes in."""
        assert self._inputs is not None
        return self._inputs[:size]

    def outputs(self, size: int) -> Bytes:
        """The first `size` bytes of what comes out."""
        assert self._outputs is not None
        return self._outputs[:size]

    def close(self) -> None:
        """Free both sides."""
        self._stream.synchronize()
        for side in (self._inputs, self._outputs):
            if side is not None:
                self._cuda.free_pinned(side)
        self._inputs = self._outputs = None


def view(memory: Bytes, offset: int, tensor: TensorSpec, dims: Mapping[str, int]) -> NDArray[Any]:
    """A tensor in host memory; bfloat16 as the uint16 of its bits."""
    dtype = np.uint16 if tensor.dtype == "bfloat16" else np.dtype(tensor.dtype)
    part = memory[offset : offset + tensor_bytes(tensor, dims)]
    return part.view(dtype).reshape(shape_of(tensor, dims))


def write(part: NDArray[Any], values: NDArray[Any]) -> None:
    """Copy an array into a view of host memory; float32 is rounded where that is bfloat16."""
    if part.dtype == np.uint16 and values.dtype != np.uint16:
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties to even
        values = np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)
    np.copyto(part, values, casting="same_kind")


def read(part: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of a view of host memory; bfloat16 as float32."""
    if part.dtype == np.uint16:
        return (part.astype(np.uint32) << 16).view(np.float32)
    return part.copy()
