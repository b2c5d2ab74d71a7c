"""Model configurations.

Field names and defaults are those of the released MAR constructor, so that a JSON file with
that constructor's arguments is a configuration, or one with the training script's
(`constructor.py`); what other families of the same skeleton add has their names, and MAR's value by
default (`models/families/`). Presets: `mar_base`, `mar_large`, `mar_huge` as published (Li et al.,
arXiv 2406.11838) and the pair of the `fashion-mnist` zoo.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .command.frame import os_error_text
from .command.strict_json import parse_json
from .command.text import plain, shown
from .constructor import configuration_values
from .errors import ConfigError
from .schedule import BETA_SCHEDULES, GUIDANCE_SCHEDULES, MASK_SCHEDULES, TRAIN_STEPS

IMAGE_KINDS = ("latent", "pixel")
SAMPLING_ALGORITHMS = ("ddpm", "dpm-solver")
# Fields that are one of some words.
_CHOICES = {
    "beta_schedule": BETA_SCHEDULES,
    "image_kind": IMAGE_KINDS,
    "mask_strategy": MASK_SCHEDULES,
    "cfg_schedule": GUIDANCE_SCHEDULES,
    "sampling_algo": SAMPLING_ALGORITHMS,
}
# What no model of this kind comes near, and what still fits into a machine's integers: the largest
# released one has 1,000 classes, 256 tokens and 0.9 billion parameters.
MOST: dict[str, float] = {
    "img_size": 16384, "vae_stride": 1024, "patch_size": 1024, "vae_embed_dim": 4096,
    "encoder_embed_dim": 65536, "encoder_depth": 1024, "encoder_num_heads": 1024,
    "decoder_embed_dim": 65536, "decoder_depth": 1024, "decoder_num_heads": 1024,
    "mlp_ratio": 64.0, "class_num": 1 << 20, "buffer_size": 4096, "diffloss_d": 1024,
    "diffloss_w": 65536, "num_sampling_steps": TRAIN_STEPS, "norm_eps": 1.0, "latent_scale": 1e6,
    "num_iter": 16384,
}  # fmt: skip
MOST_TOKENS = 16384
MOST_PARAMETERS = 20_000_000_000
# What two models must share to speak of the same tokens.
SHARED_FIELDS = (
    "img_size", "vae_stride", "patch_size", "vae_embed_dim", "class_num", "image_kind",
    "latent_scale", "beta_schedule",
)  # fmt: skip


@dataclass(frozen=True)
class MARConfig:
    """Architecture of a masked-autoregressive model with a diffusion head.

    `num_sampling_steps` is the number S of head steps that the model samples with by default.
    `norm_eps` is the epsilon of the LayerNorms inside and after the transformer blocks.
    `image_kind` says what a latent is: `latent` (needs a KL decoder, latents are divided by
    `latent_scale` first) or `pixel` (the latent is the image, in [-1, 1]).

    How the model samples where a run does not say: `num_iter` AR steps (at most L), their sizes by
    `mask_strategy`, guidance by `cfg_schedule` while more than `cfg_t_min` and at most `cfg_t_max`
    of the AR steps are left, and the head's chain of `num_sampling_steps` steps (`ddpm`) or a
    solver of its differential equation with as many evaluations (`dpm-solver`).

    Raises:
        ConfigError: a value is out of range, or two values do not fit each other.
    """

    img_size: int = 256
    vae_stride: int = 16
    patch_size: int = 1
    vae_embed_dim: int = 16
    encoder_embed_dim: int = 1024
    encoder_depth: int = 16
    encoder_num_heads: int = 16
    decoder_embed_dim: int = 1024
    decoder_depth: int = 16
    decoder_num_heads: int = 16
    mlp_ratio: float = 4.0
    class_num: int = 1000
    buffer_size: int = 64
    diffloss_d: int = 3
    diffloss_w: int = 1024
    num_sampling_steps: int = 100
    norm_eps: float = 1e-6
    beta_schedule: str = "cosine"
    image_kind: str = "latent"
    latent_scale: float = 0.2325
    family: str = "mar"
    num_iter: int = 64
    mask_strategy: str = "cosine"
    cfg_schedule: str = "linear"
    cfg_t_min: float = 0.0
    cfg_t_max: float = 1.0
    sampling_algo: str = "ddpm"

    def __post_init__(self) -> None:
        steps: Any = self.num_sampling_steps
        if isinstance(steps, str):  # the released constructor takes a string
            if not (steps.isascii() and steps.isdecimal() and len(steps) < 9):
                raise ConfigError(
                    f"num_sampling_steps is {shown(steps)}: give a whole number of DDPM steps, "
                    "1 to 1000 (DDIM and sectioned respacing are not supported)"
                )
            object.__setattr__(self, "num_sampling_steps", int(steps))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                most = MOST[field.name]
                if type(value) is not int or not 1 <= value <= most:
                    raise ConfigError(
                        f"{field.name} is {shown(value)}: give a whole number from 1 to {most}"
                    )
            elif field.type == "float" and field.name in MOST:
                most = MOST[field.name]
                if type(value) not in (int, float) or not 0 < value <= most:
                    raise ConfigError(
                        f"{field.name} is {shown(value)}: give a number above 0, at most {most:g}"
                    )
        for part in ("encoder", "decoder"):
            width, heads = getattr(self, f"{part}_embed_dim"), getattr(self, f"{part}_num_heads")
            if width % heads:
                raise ConfigError(
                    f"{part}_embed_dim {width} is not a multiple of {part}_num_heads {heads}"
                )
        if self.img_size % (self.vae_stride * self.patch_size):
            raise ConfigError(
                f"img_size {self.img_size} is not a multiple of vae_stride x patch_size "
                f"= {self.vae_stride * self.patch_size}"
            )
        if self.seq_len > MOST_TOKENS:
            raise ConfigError(
                f"img_size {self.img_size} makes {self.seq_len} tokens an image: give a smaller "
                f"one, or a larger vae_stride or patch_size, for at most {MOST_TOKENS}"
            )
        if self.parameters > MOST_PARAMETERS:
            raise ConfigError(
                f"a model of this configuration has {self.parameters / 1e9:.0f} billion "
                f"parameters: give smaller widths or depths, for at most "
                f"{MOST_PARAMETERS / 1e9:.0f} billion"
            )
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(f"{name} is {shown(value)}: give one of {', '.join(allowed)}")
        family: Any = self.family
        if not isinstance(family, str) or not re.fullmatch(r"[a-z0-9_]{1,40}", family):
            raise ConfigError(f"family is {shown(family)}: give a family's name, as mar")
        times: tuple[Any, ...] = self.cfg_t_min, self.cfg_t_max
        if any(type(t) not in (int, float) for t in times) or not 0 <= times[0] < times[1] <= 1:
            raise ConfigError(
                f"cfg_t_min and cfg_t_max are {shown(times[0])} and {shown(times[1])}: give two "
                "shares of the AR steps in ascending order, 0 to 1"
            )
        if self.image_kind == "pixel" and self.vae_embed_dim not in (1, 3):
            raise ConfigError(
                f"a pixel model has vae_embed_dim 1 (grey) or 3 (RGB), not {self.vae_embed_dim}"
            )

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the image."""
        return self.img_size // self.vae_stride // self.patch_size

    @property
    def seq_len(self) -> int:
        """Number L of tokens of an image."""
        return self.grid_size**2

    @property
    def token_dim(self) -> int:
        """Number C of channels of a token."""
        return self.vae_embed_dim * self.patch_size**2

    @property
    def condition_dim(self) -> int:
        """Number D of channels of the condition z."""
        return self.decoder_embed_dim

    @property
    def solved(self) -> bool:
        """Whether the head samples with a solver where a run does not say.

        Its timesteps are no whole numbers: such a model's `head_modulation` takes float32 ones.
        """
        return self.sampling_algo == "dpm-solver"

    @property
    def modulation_dim(self) -> int:
        """Number M of adaLN values of one (head step, token): three per block, two at the end."""
        return (3 * self.diffloss_d + 2) * self.diffloss_w

    @property
    def parameters(self) -> int:
        """Number of parameters of the matrices, about."""
        encoder = self.encoder_depth * self.encoder_embed_dim**2
        decoder = self.decoder_depth * self.decoder_embed_dim**2
        head = (5 * self.diffloss_d + 3) * self.diffloss_w**2
        return round((4 + 2 * self.mlp_ratio) * (encoder + decoder)) + head

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape [c, h, w] of the latents of one image."""
        side = self.img_size // self.vae_stride
        return (self.vae_embed_dim, side, side)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MARConfig:
        """Build a configuration from JSON values.

        Those may be all arguments of the released constructor, or of its training script: what
        only training uses is left out.

        Raises:
            ConfigError: a key is unknown or a value is not valid.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        return cls(**configuration_values(values, fields, RELEASED_MODELS))

    @classmethod
    def load(cls, name_or_path: str | Path) -> MARConfig:
        """Return the preset of that name, or read a JSON file of constructor arguments.

        Raises:
            ConfigError: no such preset or file, not JSON, or not a valid configuration.
        """
        if str(name_or_path) in PRESETS:
            return PRESETS[str(name_or_path)]
        return cls.from_dict(read_values(name_or_path, PRESETS))


def read_values(path: str | Path, presets: Iterable[str]) -> dict[str, Any]:
    """Read a JSON file of constructor arguments.

    Args:
        path: of the file.
        presets: names that could have been given in its place, for the error.

    Raises:
        ConfigError: no such file, or not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            f"no configuration {str(path)!r}: give a JSON file or one of {', '.join(presets)}"
        )
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration: {os_error_text(error)}") from error
    except ValueError as error:
        raise ConfigError(
            f"cannot read configuration {path}: {plain(str(error))}; give a JSON object of "
            "constructor arguments"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {path} is not a JSON object of constructor arguments")
    return values


def check_same_tokens(target: MARConfig, draft: MARConfig) -> None:
    """Check that two models speak of the same tokens.

    Raises:
        ConfigError: names the first field that differs.
    """
    for name in SHARED_FIELDS:
        ours, theirs = getattr(target, name), getattr(draft, name)
        if ours != theirs:
            raise ConfigError(
                f"the draft has {name} {theirs}, the target {ours}: a draft must make the "
                "target's tokens; give one trained on the same latents"
            )


def _published(width: int, depth: int, heads: int, head_depth: int, head_width: int) -> MARConfig:
    return MARConfig(
        encoder_embed_dim=width,
        encoder_depth=depth,
        encoder_num_heads=heads,
        decoder_embed_dim=width,
        decoder_depth=depth,
        decoder_num_heads=heads,
        diffloss_d=head_depth,
        diffloss_w=head_width,
    )


def _fashion_mnist(width: int, depth: int, heads: int, head_depth: int, head_width: int):
    return dataclasses.replace(
        _published(width, depth, heads, head_depth, head_width),
        img_size=28,
        vae_stride=1,
        patch_size=4,
        vae_embed_dim=1,
        class_num=10,
        buffer_size=4,
        beta_schedule="linear",
        image_kind="pixel",
    )


def _fashion_latent(**sizes: Any) -> MARConfig:
    return MARConfig(
        **sizes,
        img_size=32,
        vae_stride=4,
        patch_size=1,
        vae_embed_dim=5,
        class_num=10,
        buffer_size=4,
        beta_schedule="linear",
        image_kind="latent",
    )


PRESETS: dict[str, MARConfig] = {
    "mar_base": _published(768, 12, 12, 6, 1024),
    "mar_large": _published(1024, 16, 16, 8, 1280),
    "mar_huge": _published(1280, 20, 16, 12, 1536),
    "fashion_mnist_target": _fashion_mnist(128, 4, 4, 3, 192),
    "fashion_mnist_draft": _fashion_mnist(64, 2, 4, 2, 112),
    "fashion_latent_target": _fashion_latent(
        encoder_embed_dim=256,
        encoder_depth=3,
        encoder_num_heads=4,
        decoder_embed_dim=256,
        decoder_depth=2,
        decoder_num_heads=4,
        diffloss_d=3,
        diffloss_w=192,
    ),
    "fashion_latent_draft": _fashion_latent(
        encoder_embed_dim=80,
        encoder_depth=2,
        encoder_num_heads=4,
        decoder_embed_dim=80,
        decoder_depth=2,
        decoder_num_heads=4,
        diffloss_d=2,
        diffloss_w=80,
    ),
}

# What `model` of the released training script stands for; its other sizes are arguments too.
RELEASED_MODELS: dict[str, dict[str, Any]] = {
    name: {
        field: getattr(PRESETS[name], field)
        for field in (
            "encoder_embed_dim", "encoder_depth", "encoder_num_heads", "decoder_embed_dim",
            "decoder_depth", "decoder_num_heads", "mlp_ratio", "norm_eps",
        )
    }
    for name in ("mar_base", "mar_large", "mar_huge")
}  # fmt: skip
