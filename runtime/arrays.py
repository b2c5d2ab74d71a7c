"""Names of array types, and the array operations of the decode loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


def gather(tokens: Float32, positions: Int64) -> Float32:
    """Tokens `[B, L, C]` at `positions [B, P]` -> `[B, P, C]`."""
    return tokens[np.arange(len(tokens))[:, None], positions]


def scatter(tokens: Float32, positions: Int64, values: Float32) -> None:
    """Write `values [B * P, C]` into tokens `[B, L, C]` at `positions [B, P]`, in place."""
    tokens[np.arange(len(tokens))[:, None], positions] = values.reshape(*positions.shape, -1)


def paired_images(images: Int64, positions: Int64) -> tuple[Int64, Int64]:
    """Images `[B]` and positions `[B, P]` as row pairs `([B * P], [B * P])`."""
    return np.repeat(images, positions.shape[1]), positions.reshape(-1)


def pad_rows(lists: list[Int64], fill: int) -> tuple[Int64, Bool]:
    """Rows of different lengths as `([G, longest] padded with fill, [G * longest] not padded)`."""
    out = np.full((len(lists), max(len(row) for row in lists)), fill, dtype=np.int64)
    valid = np.zeros(out.shape, dtype=np.bool_)
    for index, row in enumerate(lists):
        out[index, : len(row)] = row
        valid[index, : len(row)] = True
    return out, valid.reshape(-1)


def gather_padded(tokens: Float32, positions: Int64) -> Float32:
    """Tokens `[L, C]` of one image at `positions [G, V]` -> `[G, V, C]`; anything where L."""
    return tokens[np.minimum(positions, len(tokens) - 1)]


def unpatchify(tokens: Float32, patch: int, channels: int) -> Float32:
    """Tokens `[B, L, C]` of a square image -> latents `[B, c, h, w]`."""
    batch, length, _ = tokens.shape
    side = round(length**0.5)
    grid = tokens.reshape(batch, side, side, channels, patch, patch)
    latents = grid.transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(latents).reshape(batch, channels, side * patch, side * patch)
