"""Inputs and outputs of the graphs of a model: what its configuration asks of them.

| graph | inputs | outputs |
| --- | --- | --- |
| `backbone` | `tokens [B, V, C]`, `visible [B, V]`, `query [B, P]`, `label [B]` | `z [B, P, D]` |
| `backbone_full` | those of `backbone` | `z [B, P, D]`, the caches |
| `backbone_local` | `tokens [B, N, C]`, `new [B, N]`, `query [B, P]`, the caches | `z [B, P, D]` |
| `head_modulation` | `z [N, D]`, `timestep [S]` | `mods [S, N, M]` |
| `head_step` | `x [R, C]`, `step [R]`, `token [R]`, `mods [S, N, M]` | `eps [R, C]`, `v [R, C]` |
| `head_chain` | `x [N, C]`, `noise [S, N, C]`, `mods [S, T, M]`, `tables [S, 6]`, `scale [N]` | `tokens [N, C]`, `mean [N, C]`, `std [N, C]`, `sum_log_std [N, C]`, `trajectory [S + 1, N, C]` |
| `decoder` | `latents [B, c, h, w]` | `image [B, 3, H, W]` |

The caches are `buffer_cache`, `token_cache`, `token_bias` and `decoder_cache`, whose shapes
`csd.models.local_steps` explains: keys and values of every block.

`integers` are int64, everything else float32; `TYPED` have the type of a variant.
"""  # noqa: E501

from __future__ import annotations

from typing import NamedTuple

from ..config import MARConfig

# Those of a model that decoding runs.
MODEL_GRAPHS = ("backbone", "head_modulation", "head_step")
# Those that local AR steps need besides (`csd-export --local-steps`).
LOCAL_GRAPHS = ("backbone_full", "backbone_local")
CACHES = ("buffer_cache", "token_cache", "token_bias", "decoder_cache")
_INTEGERS = frozenset({"visible", "query", "label", "new", "step", "token", "timestep"})
TYPED = frozenset({"mods", "buffer_cache", "token_cache", "decoder_cache"})
# Element types of `TYPED` tensors by precision; in int8 products alone have its type.
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "float32"}

# A dimension is a number or the name of a dynamic one.
Shapes = dict[str, tuple[int | str, ...]]


class GraphTensors(NamedTuple):
    """Shapes of a graph's inputs and outputs by name, and which of them are whole numbers."""

    inputs: Shapes
    outputs: Shapes
    integers: frozenset[str] = _INTEGERS


def graph_tensors(kind: str, config: MARConfig, upscale: int = 1) -> GraphTensors | None:
    """Return the tensors of a graph; None for a kind that no model has.

    Args:
        kind: as in the table at the head of this file.
        config: of the model, or of the target for its decoder.
        upscale: pixels of the decoder along a side of a latent.
    """
    channels, condition, modulation = config.token_dim, config.condition_dim, config.modulation_dim
    token = ("N", channels)
    latents, height, width = config.latent_shape
    known: Shapes = {
        "tokens": ("B", "V", channels), "visible": ("B", "V"),
        "query": ("B", "P"), "label": ("B",),
    }  # fmt: skip
    conditions: Shapes = {"z": ("B", "P", condition)}
    caches = _caches(config)
    return {
        "backbone": GraphTensors(known, conditions),
        "backbone_full": GraphTensors(known, {**conditions, **caches}),
        "backbone_local": GraphTensors(
            {"tokens": ("B", "N", channels), "new": ("B", "N"), "query": ("B", "P"), **caches},
            conditions,
        ),
        "head_modulation": GraphTensors(
            {"z": ("N", condition), "timestep": ("S",)}, {"mods": ("S", "N", modulation)},
            _INTEGERS - {"timestep"} if config.solved else _INTEGERS,
        ),
        "head_step": GraphTensors(
            {
                "x": ("R", channels), "step": ("R",), "token": ("R",),
                "mods": ("S", "N", modulation),
            },
            {"eps": ("R", channels), "v": ("R", channels)},
        ),
        "head_chain": GraphTensors(
            {
                "x": token, "noise": ("S", *token), "mods": ("S", "T", modulation),
                "tables": ("S", 6), "scale": ("N",),
            },
            {
                "tokens": token, "mean": token, "std": token, "sum_log_std": token,
                "trajectory": ("S + 1", *token),
            },
        ),
        "decoder": GraphTensors(
            {"latents": ("B", latents, height, width)},
            {"image": ("B", 3, height * upscale, width * upscale)},
        ),
    }.get(kind)  # fmt: skip


def _caches(config: MARConfig) -> Shapes:
    """Shapes of what a full AR step keeps."""
    heads, other = config.encoder_num_heads, config.decoder_num_heads
    width = config.encoder_embed_dim // heads
    encoder, decoder = 2 * config.encoder_depth, 2 * config.decoder_depth
    total = config.buffer_size + config.seq_len
    return {
        "buffer_cache": ("B", encoder, heads, config.buffer_size, width),
        "token_cache": ("B", encoder, heads, "V", width),
        "token_bias": ("B", "V"),
        "decoder_cache": ("B", decoder, other, total, config.decoder_embed_dim // other),
    }


def tensor_dtype(name: str, integers: frozenset[str], precision: str) -> str:
    """Element type of a tensor in a precision, given the graph's integers."""
    if name in integers:
        return "int64"
    return DTYPES[precision] if name in TYPED else "float32"
