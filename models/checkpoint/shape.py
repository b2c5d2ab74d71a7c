"""The configuration of a MAR model as its weights tell it, and what they cannot tell.

Shapes tell depths, widths, classes, buffer, tokens of an image and channels of a token. They do
not tell the heads of attention, how image size, stride, patch and latent channels make those
tokens, nor beta schedule, latent scale and epsilons: those are the decoder's, of the arguments that
training kept in the file, a preset's of the same size, or the released constructor's defaults.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...runtime.config import PRESETS, RELEASED_MODELS, MARConfig
from ...runtime.errors import WeightsError
from .reading import names_in

LANDMARK = "z_proj.weight"
_HEAD = "diffloss.net."
# What the released training script has where it is not told otherwise: a KL autoencoder of 16
# channels and stride 16.
_USUAL_CHANNELS, _USUAL_STRIDE = 16, 16
_TRANSFORMER = (
    "encoder_embed_dim", "encoder_depth", "decoder_embed_dim", "decoder_depth", "mlp_ratio",
)  # fmt: skip
_NOT_IN_SHAPES = (
    "img_size", "vae_stride", "patch_size", "vae_embed_dim", "encoder_num_heads",
    "decoder_num_heads", "num_sampling_steps", "norm_eps", "beta_schedule", "image_kind",
    "latent_scale",
)  # fmt: skip
_MOST_TOLD = 3
_NOT_IN_PRESETS = ("num_sampling_steps",)  # how a model is sampled, not what it is


@dataclass(frozen=True)
class Shape:
    """What the shapes of a MAR model's weights tell, by the configuration's names.

    `tokens` is L, `token_channels` C.
    """

    encoder_embed_dim: int
    encoder_depth: int
    decoder_embed_dim: int
    decoder_depth: int
    mlp_ratio: float
    class_num: int
    buffer_size: int
    tokens: int
    token_channels: int
    diffloss_d: int
    diffloss_w: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], path: str | Path) -> Shape:
        """Read the shape off the tensors.

        Raises:
            WeightsError: they are not those of a MAR model.
        """
        try:
            positions = len(tensors["encoder_pos_embed_learned"][0])
            tokens = len(tensors["diffusion_pos_embed_learned"][0])
            width, channels = tensors[LANDMARK].shape
            hidden = len(tensors["encoder_blocks.0.mlp.fc1.weight"])
            return cls(
                encoder_embed_dim=width,
                encoder_depth=_count(tensors, "encoder_blocks"),
                decoder_embed_dim=len(tensors["decoder_embed.weight"]),
                decoder_depth=_count(tensors, "decoder_blocks"),
                mlp_ratio=_ratio(hidden, width),
                class_num=len(tensors["class_emb.weight"]),
                buffer_size=positions - tokens,
                tokens=tokens,
                token_channels=channels,
                diffloss_d=_count(tensors, f"{_HEAD}res_blocks"),
                diffloss_w=len(tensors[f"{_HEAD}input_proj.weight"]),
            )
        except KeyError as error:
            raise WeightsError(
                f"{path} holds no MAR model: it lacks {error.args[0]} and has {names_in(tensors)}"
            ) from error
        except (ValueError, IndexError, ZeroDivisionError, TypeError) as error:
            raise WeightsError(
                f"{path} holds no MAR model: its tensors have other dimensions"
            ) from error

    def differences(self, config: MARConfig) -> list[str]:
        """How a configuration differs, `FIELD is A, the weights have B` each."""
        differ: list[str] = []
        for field in dataclasses.fields(self):
            if field.name not in ("tokens", "token_channels"):
                asked, has = getattr(config, field.name), getattr(self, field.name)
                width = self.encoder_embed_dim if field.name == "mlp_ratio" else 1
                if int(width * asked) != int(width * has):
                    differ.append(f"{field.name} is {asked:g}, the weights have {has:g}")
        if config.token_dim != self.token_channels:
            differ.append(
                f"vae_embed_dim {config.vae_embed_dim} and patch_size {config.patch_size} make "
                f"tokens of {config.token_dim} channels, the weights have {self.token_channels}"
            )
        if config.seq_len != self.tokens:
            side = math.isqrt(self.tokens)
            made = side * config.vae_stride * config.patch_size
            differ.append(
                f"img_size is {config.img_size} ({config.seq_len} tokens), the weights have "
                f"{self.tokens} tokens, as img_size {made} makes"
            )
        return differ


def _ratio(hidden: int, width: int) -> float:
    """The least number whose product with the width is not below `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _count(tensors: Mapping[str, Tensor], blocks: str) -> int:
    """Blocks of a list, numbered from 0."""
    found = re.compile(re.escape(blocks) + r"\.(\d{1,5})\.")
    numbers = {int(match[1]) for name in tensors if (match := found.match(name))}
    if not numbers:
        raise KeyError(f"{blocks}.0")
    return 1 + max(numbers)


@dataclass(frozen=True)
class Hints:
    """What helps to tell a configuration that weights alone do not.

    Attributes:
        heads: of attention, in the encoder and the decoder; None where nobody said.
        heads_option: what to give where they are needed.
        latent_channels, stride: of the KL decoder that goes with the model, where there is one.
        arguments: of the training script, where the file keeps them.
    """

    heads: tuple[int, int] | None = None
    heads_option: str = "num_heads"
    latent_channels: int | None = None
    stride: int | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


def infer_config(shape: Shape, path: str | Path, hints: Hints) -> tuple[MARConfig, str]:
    """Return the configuration of weights, and where what they do not tell is from.

    Args:
        shape: of the weights.
        path: of the file, for messages.
        hints: what else is known.

    Raises:
        WeightsError: the weights fit no preset and something that they do not tell is not known.
        ConfigError: what they tell is no configuration that csd takes.
    """
    said = {name: hints.arguments[name] for name in _NOT_IN_SHAPES if name in hints.arguments}
    steps = str(said.pop("num_sampling_steps", ""))
    if steps.isascii() and steps.isdecimal() and len(steps) < 5:  # else DDIM's, or all of them
        said["num_sampling_steps"] = int(steps)
    for name, preset in PRESETS.items():
        if not shape.differences(preset) and _agrees(preset, hints, said):
            sampled = said.get("num_sampling_steps", preset.num_sampling_steps)
            config = dataclasses.replace(preset, num_sampling_steps=sampled)
            return config, f"its shapes are those of {name}"
    heads, source = _heads(shape, path, hints, said)
    fields = {
        name: value
        for name, value in dataclasses.asdict(shape).items()
        if name not in ("tokens", "token_channels")
    }
    config = MARConfig.from_dict({
        **said, **fields, **_tokens(shape, path, hints, said),
        "encoder_num_heads": heads[0], "decoder_num_heads": heads[1],
    })  # fmt: skip
    return config, f"heads {source}, the rest from its shapes"


def _agrees(preset: MARConfig, hints: Hints, said: Mapping[str, Any]) -> bool:
    # Not of the decoder: one of other latents is a mistake where all shapes are a preset's.
    same = all(said[n] == getattr(preset, n) for n in said if n not in _NOT_IN_PRESETS)
    return same and hints.heads in (None, (preset.encoder_num_heads, preset.decoder_num_heads))


def _heads(
    shape: Shape, path: str | Path, hints: Hints, said: Mapping[str, Any]
) -> tuple[tuple[int, int], str]:
    """Heads of encoder and decoder, and whose they are."""
    if hints.heads is not None:
        return hints.heads, "as given"
    if "encoder_num_heads" in said and "decoder_num_heads" in said:
        kept = (said["encoder_num_heads"], said["decoder_num_heads"])
        return kept, "as the arguments of its training have"
    for name, sizes in RELEASED_MODELS.items():
        if all(sizes[part] == getattr(shape, part) for part in _TRANSFORMER):
            return (sizes["encoder_num_heads"], sizes["decoder_num_heads"]), f"as {name} has"
    raise WeightsError(
        f"{path} is of no released model's size (encoder {shape.encoder_depth} x "
        f"{shape.encoder_embed_dim}, decoder {shape.decoder_depth} x {shape.decoder_embed_dim}), "
        f"and weights do not tell the heads of attention: give {hints.heads_option}"
    )


def _tokens(
    shape: Shape, path: str | Path, hints: Hints, said: Mapping[str, Any]
) -> dict[str, int]:
    """Image size, stride, patch and latent channels that make the tokens of the weights."""
    side = math.isqrt(shape.tokens)
    channels = hints.latent_channels or _count_in(said, "vae_embed_dim") or _USUAL_CHANNELS
    stride = hints.stride or _count_in(said, "vae_stride") or _USUAL_STRIDE
    patch = math.isqrt(shape.token_channels // channels)
    if channels * patch**2 != shape.token_channels or side**2 != shape.tokens or not patch:
        raise WeightsError(
            f"{path} has {shape.tokens} tokens of {shape.token_channels} channels, which does not "
            f"tell vae_embed_dim and patch_size (of {channels} latent channels they are no square "
            "patches): give the decoder that belongs to it, or a JSON file of constructor arguments"
        )
    return {
        "img_size": side * patch * stride, "vae_stride": stride, "patch_size": patch,
        "vae_embed_dim": channels,
    }  # fmt: skip


def _count_in(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    return value if type(value) is int and value > 0 else 0


def check_config(shape: Shape, config: MARConfig, path: str | Path) -> None:
    """Check a configuration against weights.

    Raises:
        WeightsError: names the fields that differ, the first of many.
    """
    differ = shape.differences(config)
    if differ:
        more = len(differ) - _MOST_TOLD
        told = "; ".join(differ[:_MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")
        raise WeightsError(
            f"{path} does not fit the configuration: {told}: give the configuration that the model "
            "was trained with, or auto"
        )
