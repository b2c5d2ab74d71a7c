"""eMIGM: You et al., "Effective and Efficient Masked Image Generation Models", arXiv 2503.07197.

MAR's networks, trained with other masks and sampled in another way:

| | MAR | eMIGM |
| --- | --- | --- |
| sizes of the AR steps | cosine | `exp`: few tokens first |
| AR steps | 64 (up to 256 published) | 16 (128 and, at 512 pixels, 64 published) |
| guidance | all AR steps, growing | constant, only in an interval of them |
| head | a chain of 100 steps | DPM-Solver++ with 8 evaluations (14 with more AR steps) |
| mask token | a weight `[1, 1, D]` | the unconditional class embedding `[1, D]` (`use_unsup_cfg`) |

The presets sample as the released evaluation does with 16 AR steps. Of more it has other
intervals: base 0.05 to 0.4, huge 0.3 to 0.7 and the others 0.18 to 0.6 with 128 AR steps, all 0.25
to 0.5 with 64 at 512 pixels.

**The tied weight.** A checkpoint has it twice, as `fake_latent` and `mask_token`. In averaged
weights the two differ: the averages are kept by `named_parameters`, which has a tied weight once,
under the first name. The released code loads both names into one tensor, `mask_token` last, and so
uses that one for both; this does as well.
"""

from __future__ import annotations

from typing import Any

from ...runtime.config import MARConfig
from .family import Family, State

_SAMPLING: dict[str, Any] = {
    "family": "emigm",
    "num_iter": 16,
    "mask_strategy": "exp",
    "cfg_schedule": "constant",
    "cfg_t_min": 0.1,
    "cfg_t_max": 0.3,
    "sampling_algo": "dpm-solver",
    "num_sampling_steps": 8,
}
_SIZES = {
    "xsmall": (448, 10, 8),
    "small": (512, 12, 8),
    "base": (768, 12, 12),
    "large": (1024, 16, 16),
    "huge": (1280, 20, 16),
}
# Blocks and width of the head.
_HEADS_256 = {
    "xsmall": (3, 1024),
    "small": (3, 1024),
    "base": (6, 1024),
    "large": (8, 1280),
    "huge": (12, 1536),
}
_HEADS_512 = {"xsmall": (6, 1280), "small": (6, 1280), "base": (8, 1280), "large": (8, 1280)}
_DC_AE_SCALE = 0.3189
# Of a DC-AE of stride 32, whose decoder is no KL decoder: bundles make latents only.
_LATENTS_512: dict[str, Any] = {
    "img_size": 512, "vae_stride": 32, "vae_embed_dim": 32, "latent_scale": _DC_AE_SCALE,
    "cfg_t_min": 0.15, "cfg_t_max": 0.35,
}  # fmt: skip


def _sizes(size: str) -> dict[str, Any]:
    width, depth, heads = _SIZES[size]
    return {
        "encoder_embed_dim": width, "encoder_depth": depth, "encoder_num_heads": heads,
        "decoder_embed_dim": width, "decoder_depth": depth, "decoder_num_heads": heads,
    }  # fmt: skip


def _published(size: str, head: tuple[int, int], **changes: Any) -> MARConfig:
    values: dict[str, Any] = {**_sizes(size), "diffloss_d": head[0], "diffloss_w": head[1]}
    return MARConfig(**{**values, **_SAMPLING, **changes})


def _presets() -> dict[str, MARConfig]:
    wider: dict[str, Any] = {"cfg_t_min": 0.2, "cfg_t_max": 0.4}
    small = {
        f"emigm_{size}": _published(size, head, **(wider if size == "huge" else {}))
        for size, head in _HEADS_256.items()
    }
    large = {
        f"emigm_{size}_512": _published(size, head, **_LATENTS_512)
        for size, head in _HEADS_512.items()
    }
    return {**small, **large}


def _is_tied(state: State) -> bool:
    return "mask_token" in state and state["mask_token"].ndim == 2


def _own_names(state: State) -> State:
    """Give the tied weight both names and shapes; one that is not tied stays."""
    token = state.get("mask_token", state.get("fake_latent"))
    if token is None or token.ndim != 2:
        return state
    return {**state, "fake_latent": token, "mask_token": token.unsqueeze(0)}


FAMILY = Family(
    "emigm",
    _presets(),
    defaults=_SAMPLING,
    unused=frozenset(
        {
            "use_unsup_cfg",  # weights show whether the mask token is tied
            "use_weighted_loss",
            "clamp_t_min",
            "save_epoch_name",
            "evaluate_multi",
            "resume_epoch",
            "distributed_launch",
        }
    ),
    choices={
        "use_mae": {True: {}},  # without, the encoder sees mask tokens; none was published
        "use_dc_ae": {False: {}, True: {"latent_scale": _DC_AE_SCALE}},
        "model": {f"emigm_{size}": _sizes(size) for size in _SIZES},
    },
    own_names=_own_names,
    recognised=_is_tied,
)
