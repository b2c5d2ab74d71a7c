"""Latent images to token sequences and back, in MAR's order of channels."""

from __future__ import annotations

from torch import Tensor


def patchify(latents: Tensor, patch: int) -> Tensor:
    """`[B, c, h, w]` -> tokens `[B, L, c * patch**2]`."""
    batch, channels, height, width = latents.shape
    rows, columns = height // patch, width // patch
    grid = latents.reshape(batch, channels, rows, patch, columns, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


def unpatchify(tokens: Tensor, patch: int, channels: int) -> Tensor:
    """Tokens `[B, L, C]` of a square image -> latents `[B, c, h, w]`."""
    batch, length, _ = tokens.shape
    side = round(length**0.5)
    grid = tokens.reshape(batch, side, side, channels, patch, patch)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, side * patch, side * patch)
