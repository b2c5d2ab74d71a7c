"""Inputs and outputs of the graphs of a model: what its configuration asks of them.

| graph | inputs | outputs |
| --- | --- | --- |
| `backbone` | `tokens [B, V, C]`, `visible [B, V]`, `query [B, P]`, `label [B]` | `z [B, P, D]` |
| `head_modulation` | `z [N, D]`, `timestep [S]` | `mods [S, N, M]` |
| `head_step` | `x [R, C]`, `step [R]`, `token [R]`, `mods [S, N, M]` | `eps [R, C]`, `v [R, C]` |
| `head_chain` | `x [N, C]`, `noise [S, N, C]`, `mods [S, T, M]`, `tables [S, 6]`, `scale [N]` | `tokens [N, C]`, `mean [N, C]`, `std [N, C]`, `sum_log_std [N, C]`, `trajectory [S + 1, N, C]` |
| `decoder` | `latents [B, c, h, w]` | `image [B, 3, H, W]` |

`integers` are int64, everything else float32; `TYPED` have the type of a variant.
"""  # noqa: E501

from __future__ import annotations

from typing import NamedTuple

from ..config import MARConfig

# Those of a model that decoding runs.
MODEL_GRAPHS = ("backbone", "head_modulation", "head_step")
_INTEGERS = frozenset({"visible", "query", "label", "step", "token", "timestep"})
TYPED = frozenset({"mods"})
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
    return {
        "backbone": GraphTensors(
            {
                "tokens": ("B", "V", channels), "visible": ("B", "V"),
                "query": ("B", "P"), "label": ("B",),
            },
            {"z": ("B", "P", condition)},
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


def tensor_dtype(name: str, integers: frozenset[str], precision: str) -> str:
    """Element type of a tensor in a precision, given the graph's integers."""
    if name in integers:
        return "int64"
    return DTYPES[precision] if name in TYPED else "float32"
