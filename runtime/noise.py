"""Counter-based noise: every random number is a pure function of what it is for.

The key of NumPy's Philox holds the seed and the purpose, its counter the image and the token, so
draft and target share noise by construction, and one seed gives one image, whatever the batch,
the backend or the order of work. Numbers of one (image, token, purpose) form a stream: the first
row of a longer draw is the first row of a shorter one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .arguments import numbers_array, whole_number
from .arrays import Float32, Int64
from .command.text import shown
from .errors import OptionError

MAX_SEED = 2**64 - 1


class Purpose(IntEnum):
    """What a stream of random numbers is for."""

    ORDER = 0
    INITIAL = 1
    PER_STEP = 2
    ACCEPT = 3
    RESIDUAL = 4
    HEAD = 5


class Noise(Protocol):
    """Source of all randomness of a run. Images and positions are paired entry by entry."""

    def orders(self, images: Int64, seq_len: int) -> Int64:
        """Generation orders, `[B, L]` permutations of 0..L-1."""
        ...

    def initial(self, images: Int64, positions: Int64, channels: int) -> Float32:
        """Standard normals that start the denoising chains, `[N, C]`."""
        ...

    def per_step(self, images: Int64, positions: Int64, steps: int, channels: int) -> Float32:
        """Standard normals of the head steps, `[N, S, C]`; entry i belongs to head step i."""
        ...

    def accept(self, images: Int64, positions: Int64) -> NDArray[np.float64]:
        """Uniforms of the density-ratio acceptance, `[N]`."""
        ...

    def stream(self, purpose: Purpose, image: int, position: int) -> np.random.Generator:
        """The stream of one (image, token, purpose)."""
        ...


class _PassingGenerator(threading.local):
    """A generator that is set to one stream after another; every thread has its own."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(0)
        self._state: Any = {**self._bits.state, "buffer_pos": 4, "has_uint32": 0}
        self._generator = np.random.Generator(self._bits)

    def at(self, counter: tuple[int, ...], key: tuple[int, ...]) -> np.random.Generator:
        """The generator at the beginning of a stream."""
        words = self._state["state"]
        words["counter"][:], words["key"][:] = counter, key
        self._bits.state = self._state
        return self._generator


_shared = _PassingGenerator()


@dataclass(frozen=True)
class SeededNoise:
    """Noise of a seed.

    Raises:
        OptionError: the seed is no whole number, or not in 0..2**64-1.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        seed = whole_number("seed", self.seed)
        if not 0 <= seed <= MAX_SEED:
            raise OptionError(f"seed is {shown(seed)}: give a whole number from 0 to 2**64 - 1")
        object.__setattr__(self, "seed", seed)

    def stream(self, purpose: Purpose, image: int, position: int = 0) -> np.random.Generator:
        """Return the stream of one (image, token, purpose)."""
        counter, key = (np.array(words, dtype=np.uint64)
                        for words in self._names(purpose, image, position))  # fmt: skip
        return np.random.Generator(np.random.Philox(counter=counter, key=key))

    def _names(
        self, purpose: Purpose, image: int, position: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Philox counter and key of a stream: its low counter word advances within it."""
        return (0, position, image, 0), (self.seed, int(purpose))

    def _passing(
        self, purpose: Purpose, images: Int64, positions: Int64
    ) -> Iterator[np.random.Generator]:
        """The streams of paired entries, each valid until any other one is asked for.

        One generator is set to each stream in turn: making one takes as long as drawing from it.
        """
        for image, position in zip(images.tolist(), positions.tolist(), strict=True):
            yield _shared.at(*self._names(purpose, image, position))

    def orders(self, images: Int64, seq_len: int) -> Int64:
        """See `Noise.orders`."""
        return np.stack(
            [self.stream(Purpose.ORDER, int(image)).permutation(seq_len) for image in images]
        )

    def initial(self, images: Int64, positions: Int64, channels: int) -> Float32:
        """See `Noise.initial`."""
        return self._normals(Purpose.INITIAL, images, positions, (channels,))

    def per_step(self, images: Int64, positions: Int64, steps: int, channels: int) -> Float32:
        """See `Noise.per_step`."""
        return self._normals(Purpose.PER_STEP, images, positions, (steps, channels))

    def accept(self, images: Int64, positions: Int64) -> NDArray[np.float64]:
        """See `Noise.accept`."""
        streams = self._passing(Purpose.ACCEPT, images, positions)
        return np.array([stream.random() for stream in streams])

    def _normals(
        self, purpose: Purpose, images: Int64, positions: Int64, shape: tuple[int, ...]
    ) -> Float32:
        out = np.empty((len(positions), *shape), dtype=np.float32)
        for row, stream in zip(out, self._passing(purpose, images, positions), strict=True):
            stream.standard_normal(out=row, dtype=np.float32)
        return out


class FixedNoise:
    """Given orders and normals, for comparing with another implementation.

    Acceptance uniforms and residual draws come from `seed`.

    Args:
        orders: `[B, L]` permutations.
        initial: `[B, L, C]` normals that start the chains.
        per_step: `[B, L, S, C]` normals, entry i of S for head step i.
        seed: seed of everything else.

    Raises:
        OptionError: an array is not of numbers, the shapes do not fit each other, or a row of
            `orders` is no permutation.
    """

    def __init__(
        self,
        orders: NDArray[np.integer],
        initial: NDArray[np.floating],
        per_step: NDArray[np.floating],
        seed: int = 0,
    ) -> None:
        self._orders = numbers_array("orders", orders, np.int64)
        self._initial = numbers_array("initial", initial, np.float32)
        self._per_step = numbers_array("per-step", per_step, np.float32)
        self._seeded = SeededNoise(seed)
        shape = self._orders.shape
        fits = (
            self._orders.ndim == 2
            and self._initial.ndim == 3
            and self._per_step.ndim == 4
            and self._initial.shape[:2] == shape == self._per_step.shape[:2]
            and self._initial.shape[2] == self._per_step.shape[3]
        )
        if not fits:
            raise OptionError(
                f"fixed noise has shapes {self._orders.shape}, {self._initial.shape}, "
                f"{self._per_step.shape}: give [B, L], [B, L, C] and [B, L, S, C]"
            )
        if (np.sort(self._orders, axis=1) != np.arange(shape[1])).any():
            raise OptionError("fixed orders are not permutations of 0..L-1: give one row an image")

    def orders(self, images: Int64, seq_len: int) -> Int64:
        """See `Noise.orders`."""
        if len(self._orders) <= int(images.max()) or self._orders.shape[1] != seq_len:
            raise OptionError(
                f"fixed noise is for {self._orders.shape[0]} images of {self._orders.shape[1]} "
                f"tokens: give it for {int(images.max()) + 1} images of {seq_len}"
            )
        return self._orders[images]

    def initial(self, images: Int64, positions: Int64, channels: int) -> Float32:
        """See `Noise.initial`."""
        self._check_channels(channels)
        return self._initial[images, positions]

    def per_step(self, images: Int64, positions: Int64, steps: int, channels: int) -> Float32:
        """See `Noise.per_step`."""
        self._check_channels(channels)
        if self._per_step.shape[2] < steps:
            raise OptionError(
                f"fixed noise has {self._per_step.shape[2]} head steps, the run has {steps}: "
                "lower head-steps or give more noise"
            )
        return self._per_step[images, positions, :steps]

    def _check_channels(self, channels: int) -> None:
        if self._initial.shape[2] != channels:
            raise OptionError(
                f"fixed noise has {self._initial.shape[2]} channels, the model has {channels}"
            )

    def accept(self, images: Int64, positions: Int64) -> NDArray[np.float64]:
        """See `Noise.accept`."""
        return self._seeded.accept(images, positions)

    def stream(self, purpose: Purpose, image: int, position: int) -> np.random.Generator:
        """See `Noise.stream`."""
        return self._seeded.stream(purpose, image, position)
