"""Random weights of any MAR shape, to time what is not at hand: `python -m csd.tools.random_model`.

A head of plain random weights is no denoiser: its chains run away and say nothing about drafts.
Here the head is `eps = x + a smooth function of (x, t, z)`: the columns of `input_proj` are
orthonormal and the last layer reads them back, a large constant keeps the LayerNorms between nearly
linear, and `roughness` scales the adaLN layers, through which t and z act. The backbone's weights
are those that training starts from. The beta schedule is linear, because MAR's cosine one
multiplies the first error of eps by 2e4.
"""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ..runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.families import load_config, presets
from ..runtime.command.files import write_atomically, write_json
from ..runtime.command.parser import Parser, run_command
from ..runtime.config import MARConfig
from ..runtime.libraries.imports import need
from .console import results_console
from .option_values import SEED, real_number_reader
from .outputs import result_files

if TYPE_CHECKING:
    from ..models import MAR
    from ..models.head import DiffusionMLP


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="python -m csd.tools.random_model",
        description="Write random weights and their configuration, for timing models whose "
        "weights are not at hand. They make no images.",
        example="python -m csd.tools.random_model --config mar_base --out random",
    )
    parser.add_argument("--config", required=True, help=f"JSON file or {', '.join(presets())}")
    parser.add_argument("--out", type=Path, required=True, help="directory for both files")
    parser.add_argument(
        "--roughness",
        type=real_number_reader(0, 10),
        default=0.2,
        help="how much eps depends on t and z",
    )
    parser.add_argument("--seed", type=SEED, default=0, help="of the weights")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Draw the weights and write them."""
    need("random_model", "torch", "safetensors")
    from safetensors.torch import save

    config = dataclasses.replace(load_config(args.config), beta_schedule="linear")
    name = Path(args.config).stem
    inputs = {} if args.config in presets() else {"the configuration": Path(args.config)}
    weights, description = result_files(args.out, [f"{name}.safetensors", f"{name}.json"], inputs)
    model = random_model(config, args.roughness, args.seed)
    with write_atomically(weights) as stream:
        stream.write(save(model.state_dict()))
    write_json(description, config.to_dict())
    results_console().print(f"{weights} and {description}", soft_wrap=True)
    return 0


def random_model(config: MARConfig, roughness: float, seed: int) -> MAR:
    """Return a model of random weights, as the head of this file explains."""
    import torch

    from ..models import MAR

    torch.manual_seed(seed)
    model = MAR(config)
    model.initialize()
    with torch.no_grad():
        _make_smooth(model.head_net, roughness)
    return model.eval()


def _make_smooth(head: DiffusionMLP, roughness: float) -> None:
    import torch

    channels, width = head.channels, head.width
    size = 8 * math.sqrt(channels / width)  # x adds 1/64 to the square that a LayerNorm divides by
    for layer in head.modulation_layers():
        torch.nn.init.normal_(layer.weight, std=roughness / math.sqrt(width) / size)
    columns = torch.linalg.qr(torch.randn(width, channels))[0]
    constant = torch.full((width,), size)
    constant[1::2] = -size
    head.input_proj.weight.copy_(columns)
    head.input_proj.bias.copy_(constant)
    last = head.final_layer.linear
    last.weight[:channels].copy_(size * columns.T)
    last.bias[:channels].copy_(-(columns.T @ constant))
    torch.nn.init.normal_(last.weight[channels:], std=1 / math.sqrt(width))
