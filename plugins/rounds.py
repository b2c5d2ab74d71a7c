"""Rounds of the exact head sampler on a CUDA device: `kernels/rounds.cuh` and its memory.

All arrays of a run lie in one block of device memory, which `Rounds` lays out. Of those that are
given, `upload` makes the bytes; of the results, `download` reads them. Between the two, a round is

    draft -> the network on x, step, token -> walk

and `progress` says whether another one is needed, and how wide.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .launch import MOST_BLOCKS, THREADS, WARP, Call
from .structs import RoundsStruct

ALIGNMENT = 256
# A lane keeps at most two channels in registers.
MOST_CHANNELS = 2 * WARP
_DONE, _NO_RESIDUAL = 0, -1

_Shape = tuple[int, ...]


STRUCT_BYTES = ctypes.sizeof(RoundsStruct)


class RoundsError(ArithmeticError):
    """A chain cannot go on."""


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        tables: `[S, 6]` float32, the columns of a head schedule.
        weight: of the affine draft, `[S, 4C, C]`; likewise the next two.
        bias: `[S, C]`.
        share: `[S, C]`.
        windows: `[S]`.
        initial: `[N, C]`.
        normals: `[N, S, C]`.
        log_uniforms: `[N, S]`.
        generators: of the residual draws, one for each token, with Philox bit generators.
        guess: `(x0hat, v)` at the first head step, `[N, C]` each.
        temperature: factor of the noise.
        scale: guidance of each token, `[N]`, or None.
    """

    tables: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    share: NDArray[np.float32]
    windows: NDArray[np.int64]
    initial: NDArray[np.float32]
    normals: NDArray[np.float32]
    log_uniforms: NDArray[np.float64]
    generators: Sequence[np.random.Generator]
    guess: tuple[NDArray[np.float32], NDArray[np.float32]]
    temperature: float
    scale: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Finished:
    """What a run made.

    Attributes:
        states: `[S + 1, N, C]`; entry 0 holds the tokens.
        noise: normals with which the sequential chain makes these states, `[N, S, C]`.
        sum_log_std: over head steps from 1 on, `[N, C]`.
        std: of the last head step, `[N, C]`.
        rounds: `[N]`.
        rows: network rows of each token, `[N]`.
    """

    states: NDArray[np.float32]
    noise: NDArray[np.float32]
    sum_log_std: NDArray[np.float32]
    std: NDArray[np.float32]
    rounds: NDArray[np.int64]
    rows: NDArray[np.int64]


def takes(generators: Sequence[np.random.Generator], channels: int) -> bool:
    """Whether the kernels can draw from these generators, for tokens of so many channels."""
    philox = all(isinstance(one.bit_generator, np.random.Philox) for one in generators)
    return philox and channels <= MOST_CHANNELS


class Rounds:
    """The memory of runs of N tokens, with room for windows of `width`.

    Args:
        tokens: N.
        channels: C, at most `MOST_CHANNELS`.
        steps: S.
        width: the longest window.
        guided: whether rows are evaluated twice, the unconditional ones after the others.
    """

    def __init__(self, tokens: int, channels: int, steps: int, width: int, *, guided: bool) -> None:
        if not 1 <= channels <= MOST_CHANNELS:
            raise ValueError(f"channels is {channels}: the kernels take 1 to {MOST_CHANNELS}")
        self.tokens, self.channels, self.steps = tokens, channels, steps
        self.width, self.guided = width, guided
        n, c, s, rows = tokens, channels, steps, tokens * width * (2 if guided else 1)
        # In this order: what goes in, results that start as zeros, and what needs no content.
        self._given: dict[str, tuple[_Shape, Any]] = {
            "tables": ((s, 6), np.float32), "weight": ((s, 4 * c, c), np.float32),
            "bias": ((s, c), np.float32), "share": ((s, c), np.float32),
            "windows": ((s,), np.int32), "log_uniforms": ((n, s), np.float32),
            "streams": ((n, 6), np.uint64), "scale": ((n,), np.float32),
            "normals": ((n, s, c), np.float32), "index": ((n,), np.int32),
            "drawn": ((n,), np.int64), "x0hat": ((n, c), np.float32), "v": ((n, c), np.float32),
            "states": ((s + 1, n, c), np.float32), "noise": ((n, s, c), np.float32),
            "sum_log_std": ((n, c), np.float32), "std": ((n, c), np.float32),
            "rounds": ((n,), np.int32), "rows_of": ((n,), np.int32), "status": ((n,), np.int32),
        }  # fmt: skip
        self._own: dict[str, tuple[_Shape, Any]] = {
            "progress": ((3,), np.int32), "features": ((n, 4 * c), np.float32),
            "mean": ((n * width, c), np.float32), "log_std": ((n * width, c), np.float32),
            "next": ((n * width, c), np.float32),
            "x": ((rows, c), np.float32), "step": ((rows,), np.int64),
            "token": ((rows,), np.int64), "eps": ((rows, c), np.float32),
            "network_v": ((rows, c), np.float32),
        }  # fmt: skip
        self.offsets: dict[str, int] = {}
        size = _aligned(STRUCT_BYTES)
        for name, (shape, dtype) in {**self._given, **self._own}.items():
            self.offsets[name] = size
            size += _aligned(_bytes(shape, dtype))
        self.size = size
        self.uploaded = self.offsets["progress"]
        self._results = self.offsets["states"]

    @property
    def results(self) -> tuple[int, int]:
        """Offset and bytes of the results."""
        return self._results, self.uploaded - self._results

    def upload(self, start: Start, address: int, out: NDArray[np.uint8]) -> None:
        """Write the first `uploaded` bytes of the block, for a block that lies at `address`."""
        struct = RoundsStruct(
            **{name: address + at for name, at in self.offsets.items()},
            tokens=self.tokens, channels=self.channels, steps=self.steps,
            temperature=start.temperature,
        )  # fmt: skip
        if not self.guided:
            struct.scale = None
        out[:STRUCT_BYTES] = np.frombuffer(bytes(struct), dtype=np.uint8)
        arrays = self.views(out)
        states = [one.bit_generator.state for one in start.generators]
        values: Mapping[str, Any] = {
            "tables": start.tables, "weight": start.weight, "bias": start.bias,
            "share": start.share, "windows": start.windows, "log_uniforms": start.log_uniforms,
            "normals": start.normals, "noise": start.normals, "index": self.steps - 1,
            "x0hat": start.guess[0], "v": start.guess[1], "scale": 1.0,
            "sum_log_std": 0, "std": 0, "rounds": 0, "rows_of": 0, "status": 0,
            "drawn": [state["buffer_pos"] for state in states],
        }  # fmt: skip
        for name, value in values.items():
            arrays[name][...] = value
        if start.scale is not None:
            arrays["scale"][...] = start.scale
        for row, state in zip(arrays["streams"], states, strict=True):
            row[:4], row[4:] = state["state"]["counter"], state["state"]["key"]
        arrays["states"][:-1] = 0
        arrays["states"][-1] = start.initial

    def views(self, block: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The arrays that cross, in the first `uploaded` bytes of a block."""
        return {
            name: block[at : at + _bytes(shape, dtype)].view(dtype).reshape(shape)
            for name, (shape, dtype) in self._given.items()
            for at in [self.offsets[name]]
        }

    def download(self, results: NDArray[np.uint8]) -> Finished:
        """Read the results.

        Args:
            results: the bytes that `results` says.

        Raises:
            RoundsError: a chain did not end: the network was not finite, or a residual was not hit.
        """
        arrays = {
            name: results[at : at + _bytes(shape, dtype)].view(dtype).reshape(shape)
            for name, (shape, dtype) in self._given.items()
            if (at := self.offsets[name] - self._results) >= 0
        }
        status = arrays["status"]
        if (bad := status[status != _DONE]).size:
            step = int(bad.max())
            raise RoundsError(
                "the residual of a rejected head transition was not hit" if step == _NO_RESIDUAL
                else f"the head's output is not finite at head step {step - 1}"
            )  # fmt: skip
        return Finished(
            *(arrays[name].copy() for name in ("states", "noise", "sum_log_std", "std")),
            *(arrays[name].astype(np.int64) for name in ("rounds", "rows_of")),
        )

    def draft(self, address: int, width: int) -> Call:
        """The kernel that writes the rows of a round: `width` for each token."""
        return self._call("csd_head_draft", address, width)

    def walk(self, address: int, width: int) -> Call:
        """The kernel that accepts, resamples and moves on; afterwards `progress` is valid."""
        return self._call("csd_head_walk", address, width)

    def _call(self, kernel: str, address: int, width: int) -> Call:
        if not 1 <= width <= self.width:
            raise ValueError(f"width is {width}: give 1 to {self.width}")
        blocks = min(-(-self.tokens * WARP // THREADS), MOST_BLOCKS)
        return Call(kernel, blocks, (address, np.int32(width)))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _bytes(shape: _Shape, dtype: Any) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
