"""The encoder of a KL autoencoder, with the parameter names of latent diffusion's checkpoints.

Only training needs it: what ships is the decoder. Rombach et al., arXiv 2112.10752.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kl_decoder import KLDecoder, Middle, ResnetBlock, group_norm


class Downsample(nn.Module):
    """A convolution of stride 2, padded at the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, 2H, 2W]` -> `[B, C, H, W]`."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, down: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(inputs if index == 0 else outputs, outputs) for index in range(blocks)
        )
        self.downsample = Downsample(outputs) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.downsample(x)


class _Encoder(nn.Module):
    def __init__(self, latent: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        top = len(widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            _Level(widths[max(i - 1, 0)], widths[i], blocks, down=i < top)
            for i in range(len(widths))
        )
        self.mid = Middle(widths[top])
        self.norm_out = group_norm(widths[top])
        self.conv_out = nn.Conv2d(widths[top], 2 * latent, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class KLAutoencoder(KLDecoder):
    """Images to a diagonal Gaussian over latents, and back.

    `state_dict` has the names of the released autoencoders, so `load_kl_decoder` reads the
    decoder from a file of it.
    """

    def __init__(self, latent: int, widths: Sequence[int], encoder_widths: Sequence[int]) -> None:
        super().__init__(latent, list(widths), blocks=1, attention=[False] * len(widths))
        self.widths, self.encoder_widths = tuple(widths), tuple(encoder_widths)
        self.encoder = _Encoder(latent, encoder_widths, blocks=1)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[B, 3, H, W]` in [-1, 1] -> mean and log variance, each `[B, c, h, w]`."""
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return mean, torch.clamp(logvar, -30.0, 20.0)
