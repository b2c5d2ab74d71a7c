"""Runs of the rounds' kernels in the emulator, with any denoiser in place of the engine."""

from __future__ import annotations

import numpy as np

from csd.plugins import rounds

from .emulation import emulate

# Blocks stride over tokens, and threads take the emulator a while to start.
BLOCKS = 2


def run(library, start, evaluate, unconditional=None):
    """Sample as a device would; returns what was made, and the rounds."""
    count, channels = start.initial.shape
    made = rounds.Rounds(
        count, channels, len(start.tables), int(start.windows.max()),
        guided=unconditional is not None,
    )  # fmt: skip
    block = np.full(made.size + rounds.ALIGNMENT, 0xFF, dtype=np.uint8)
    block = block[-block.ctypes.data % rounds.ALIGNMENT :][: made.size]
    address = block.ctypes.data
    made.upload(start, address, block[: made.uploaded])

    def part(name, dtype, size):
        at = made.offsets[name]
        return block[at : at + size * np.dtype(dtype).itemsize].view(dtype)

    width, calls = int(start.windows[len(start.tables) - 1]), 0
    while True:
        assert emulate(library, made.draft(address, width), blocks=BLOCKS) == 0
        rows = count * width * (2 if unconditional else 1)
        x = part("x", np.float32, rows * channels).reshape(rows, channels)
        step, token = part("step", np.int64, rows), part("token", np.int64, rows)
        assert (token < count * (2 if unconditional else 1)).all()
        half = count * width
        eps, v = evaluate(x[:half], step[:half], token[:half])
        if unconditional:
            np.testing.assert_array_equal(x[:half], x[half:])
            np.testing.assert_array_equal(step[:half], step[half:])
            np.testing.assert_array_equal(token[:half] + count, token[half:])
            other, _ = unconditional(x[half:], step[half:], token[half:] - count)
            # The variance share of the unconditional branch is of no use.
            eps, v = np.concatenate([eps, other]), np.concatenate([v, np.full_like(v, np.nan)])
        part("eps", np.float32, eps.size)[:] = eps.reshape(-1)
        part("network_v", np.float32, v.size)[:] = v.reshape(-1)
        assert emulate(library, made.walk(address, width), blocks=BLOCKS) == 0
        active, widest, failed = part("progress", np.int32, 3).tolist()
        calls += 1
        if failed or not active:
            break
        width = widest
    at, size = made.results
    return made.download(block[at : at + size]), calls


def streams(count, seed=5):
    """A stream for each token, as the runtime makes them."""
    return [np.random.Generator(np.random.Philox(key=[seed, n])) for n in range(count)]
