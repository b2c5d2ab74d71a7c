"""The KL decoder of latent diffusion as MAR uses it: latents to images.

The architecture (levels, widths, residual blocks, attention) is read off the checkpoint, so any
`ch_mult` loads. Parameter names are those of the released checkpoints (`decoder.*`,
`post_quant_conv.*`), of a whole latent diffusion model (`first_stage_model.*`) or of diffusers
(`kl_names.py`); the encoder's are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.errors import WeightsError
from .checkpoint.fit import build, check_names
from .checkpoint.reading import Weights, read_weights
from .kl_names import LANDMARK, decoder_names

_GROUPS = 32
_REMEDY = "fetch the file again"


def group_norm(channels: int) -> nn.GroupNorm:
    """The normalisation of every block: 32 groups."""
    return nn.GroupNorm(_GROUPS, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two convolutions with group norm; a 1x1 shortcut where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = group_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` -> `[B, outputs, H, W]`."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttnBlock(nn.Module):
    """Single-head self-attention over pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        h = self.norm(x)
        pixels = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k, v = (t.unsqueeze(1) for t in pixels)  # one head: [B, 1, H * W, C]
        out = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.proj_out(out.transpose(1, 2).reshape(x.shape))


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, 2H, 2W]`."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Attention between two residual blocks, at the smallest size; the encoder has one too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return self.block_2(self.attn_1(self.block_1(x)))


class _Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool, up: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(inputs if index == 0 else outputs, outputs) for index in range(blocks)
        )
        self.attn = nn.ModuleList(AttnBlock(outputs) for _ in range(blocks if attention else 0))
        self.upsample = Upsample(outputs) if up else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return self.upsample(x)


class _Decoder(nn.Module):
    def __init__(self, latent: int, widths: list[int], blocks: int, attention: list[bool]) -> None:
        super().__init__()
        top = len(widths) - 1
        self.conv_in = nn.Conv2d(latent, widths[top], 3, padding=1)
        self.mid = Middle(widths[top])
        self.up = nn.ModuleList(
            _Level(widths[min(i + 1, top)], widths[i], blocks, attention[i], up=i > 0)
            for i in range(len(widths))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(list(self.up)):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class KLDecoder(nn.Module):
    """Latents `[B, c, h, w]`, already divided by the latent scale, to images `[B, 3, H, W]`."""

    def __init__(self, latent: int, widths: list[int], blocks: int, attention: list[bool]) -> None:
        super().__init__()
        self.latent_channels = latent
        self.upscale = 2 ** (len(widths) - 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.decoder = _Decoder(latent, widths, blocks, attention)

    def forward(self, latents: Tensor) -> Tensor:
        """`[B, c, h, w]` -> `[B, 3, H, W]`, in [-1, 1] but for overshoot."""
        return self.decoder(self.post_quant_conv(latents))


def load_kl_decoder(path: str | Path, wanted: str | None = None) -> KLDecoder:
    """Load the decoder of a KL autoencoder (`kl16.ckpt`), float32, evaluation mode.

    Args:
        path: a file, an index of shards or a folder (`read_weights`).
        wanted: `ema`, `model`, a key of the file, or None for averages where there are any.

    Raises:
        WeightsError: the file cannot be read or holds no such decoder, or a tensor holds values
            that are not finite.
    """
    found = find_kl_decoder(path, wanted)
    check_kl_decoder(found)
    return build_kl_decoder(found)


def find_kl_decoder(path: str | Path, wanted: str | None = None) -> Weights:
    """Find a decoder's weights without reading them. Arguments and errors as for `read_weights`."""
    weights = read_weights(path, wanted, landmark=LANDMARK, others=True)
    return weights.renamed(decoder_names(weights.tensors))


def check_kl_decoder(weights: Weights) -> None:
    """Check weights that were found, without taking memory for them.

    Raises:
        WeightsError: they are none of a decoder, or one is missing, unexpected, of another shape or
            not finite.
    """
    make = _architecture(weights.tensors, weights.path)
    weights.check_plain()
    with torch.device("meta"):
        decoder = make()
    check_names(decoder.state_dict(), _own_shapes(weights.tensors), weights.path, _REMEDY)
    weights.check_finite()


def build_kl_decoder(weights: Weights) -> KLDecoder:
    """Make the decoder of weights that `check_kl_decoder` has taken.

    Raises:
        BackendError, OSError: as for `read_weights`.
    """
    make = _architecture(weights.tensors, weights.path)
    return build(make, _own_shapes(weights.float32()))


def _own_shapes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        # A linear layer of diffusers' attention is a 1x1 convolution here.
        name: tensor[:, :, None, None] if ".attn" in name and tensor.ndim == 2 else tensor
        for name, tensor in state.items()
    }


def decoder_shape(weights: Weights) -> tuple[int, int]:
    """Latent channels that a decoder takes and pixels that it makes of one, without reading it.

    Raises:
        WeightsError: the weights are none of a decoder.
    """
    with torch.device("meta"):
        decoder = _architecture(weights.tensors, weights.path)()
    return decoder.latent_channels, decoder.upscale


def _architecture(state: Mapping[str, Tensor], path: str | Path) -> Callable[[], KLDecoder]:
    found = [re.match(r"decoder\.up\.(\d+)\.block\.(\d+)\.conv2\.weight", name) for name in state]
    places = [(int(m[1]), int(m[2])) for m in found if m]
    if not places or "post_quant_conv.weight" not in state:
        raise WeightsError(
            f"{path} holds no KL decoder (decoder.up.*, post_quant_conv.*): give the "
            "autoencoder's checkpoint"
        )
    levels = 1 + max(level for level, _ in places)
    blocks = 1 + max(block for _, block in places)
    try:
        widths = [len(state[f"decoder.up.{i}.block.0.conv2.weight"]) for i in range(levels)]
    except KeyError as error:
        raise WeightsError(f"{path} lacks {error.args[0]}: {_REMEDY}") from error
    if any(width % _GROUPS for width in widths):
        raise WeightsError(f"{path}: decoder widths {widths} are not multiples of {_GROUPS}")
    attention = [f"decoder.up.{i}.attn.0.q.weight" in state for i in range(levels)]
    latent = len(state["post_quant_conv.weight"])
    return lambda: KLDecoder(latent, widths, blocks, attention)
