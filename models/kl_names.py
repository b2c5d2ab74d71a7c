"""Names of a KL decoder's tensors: latent diffusion's, which csd has, and those of diffusers.

Both libraries save the same decoder. diffusers numbers its levels from the latents up, latent
diffusion from the image down; attention is made of linear layers there and of 1x1 convolutions here.

| latent diffusion | diffusers |
| --- | --- |
| `decoder.up.{N-1-i}.block.{j}` | `decoder.up_blocks.{i}.resnets.{j}` |
| `decoder.up.{N-1-i}.attn.{j}` | `decoder.up_blocks.{i}.attentions.{j}` |
| `decoder.up.{N-1-i}.upsample` | `decoder.up_blocks.{i}.upsamplers.0` |
| `decoder.mid.block_{j+1}`, `decoder.mid.attn_1` | `decoder.mid_block.resnets.{j}`, `.attentions.0` |
| `nin_shortcut`, `norm_out` | `conv_shortcut`, `conv_norm_out` |
| `norm`, `q`, `k`, `v`, `proj_out` of attention | `group_norm`, `to_q`, `to_k`, `to_v`, `to_out.0` (in old files `query`, `key`, `value`, `proj_attn`) |
"""  # noqa: E501

from __future__ import annotations

import re
from collections.abc import Iterable

PARTS = ("decoder.", "post_quant_conv.")
# In every decoder, under this name in both libraries.
LANDMARK = "decoder.conv_in.weight"

_LEVEL = re.compile(r"decoder\.up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"decoder\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out",
}  # fmt: skip


def decoder_names(names: Iterable[str]) -> dict[str, str]:
    """Return what a decoder needs of an autoencoder's tensors, `{name here: name there}`."""
    own = [name for name in names if name.startswith(PARTS)]
    levels = [int(match[1]) for name in own if (match := _LEVEL.fullmatch(name))]
    top = max(levels, default=0)
    return {_renamed(name, top): name for name in own}


def _renamed(name: str, top: int) -> str:
    if match := _LEVEL.fullmatch(name):
        level, part, number, rest = top - int(match[1]), match[2], match[3], match[4]
        if part == "upsamplers":
            return f"decoder.up.{level}.upsample.{rest}"
        kind = "block" if part == "resnets" else "attn"
        return f"decoder.up.{level}.{kind}.{number}.{_inside(part, rest)}"
    if match := _MIDDLE.fullmatch(name):
        part, number = match[1], int(match[2]) + 1
        kind = "block" if part == "resnets" else "attn"
        return f"decoder.mid.{kind}_{number}.{_inside(part, match[3])}"
    return name.replace("decoder.conv_norm_out.", "decoder.norm_out.")


def _inside(part: str, rest: str) -> str:
    """Name of a tensor within a residual block or an attention."""
    layer, _, tensor = rest.rpartition(".")
    if part == "attentions":
        return f"{_ATTENTION.get(layer, layer)}.{tensor}"
    return f"{'nin_shortcut' if layer == 'conv_shortcut' else layer}.{tensor}"
