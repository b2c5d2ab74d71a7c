"""Random weights in every form of file, and how many parameters a model has.

    python -m csd.tools.measure.models.weights count CONFIG ...
    python -m csd.tools.measure.models.weights draw CONFIG --out FILE
    python -m csd.tools.measure.models.weights FORM CONFIG --drawn FILE --out PATH

A process of its own draws or writes, so that its memory is gone afterwards and the caller needs no
PyTorch.
"""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ....runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....models.families import load_config
from ....runtime.command.files import write_json
from ....runtime.command.parser import Parser, run_command
from ....runtime.config import MARConfig
from ....runtime.libraries.imports import need
from ...random_model import random_model

if TYPE_CHECKING:
    from torch import Tensor

_ROUGHNESS, _SEED = 0.2, 0  # those of random_model
_SHARDS = 3


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="python -m csd.tools.measure.models.weights",
        description="Draw random weights of a model, write them in a form of file, or count them.",
        example="python -m csd.tools.measure.models.weights draw mar_base --out x.safetensors",
    )
    parser.add_argument("task", choices=("count", "draw", *WRITERS))
    parser.add_argument("configs", nargs="+", help="presets or JSON files")
    parser.add_argument("--out", type=Path, help="file or folder to write (default: none)")
    parser.add_argument("--drawn", type=Path, help="file that draw wrote (default: none)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Do the task; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Do the task."""
    need("the table of models", "torch", "safetensors")
    configs = {text: load_config(text) for text in args.configs}
    if args.task == "count":
        print(json.dumps({text: count(config) for text, config in configs.items()}))
        return 0
    (config,) = configs.values()
    if args.task == "draw":
        draw(config, args.out)
    else:
        WRITERS[args.task](args.drawn, config, args.out)
    return 0


def count(config: MARConfig) -> int:
    """How many parameters a model has, without making them."""
    import torch

    from ....models import MAR

    with torch.device("meta"):
        return sum(tensor.numel() for tensor in MAR(config).state_dict().values())


def draw(config: MARConfig, path: Path) -> None:
    """Write random weights of a model, under the names and in the shapes that its family released.

    Raises:
        OSError: they cannot be written.
    """
    from safetensors.torch import save_file

    state = dict(random_model(config, _ROUGHNESS, _SEED).state_dict())
    if config.family == "emigm":  # the mask token is the unconditional class embedding
        state["mask_token"] = state["mask_token"][0]
    save_file(state, path)


def mapped(path: Path) -> dict[str, Tensor]:
    """Return the float32 tensors of a safetensors file, each mapped by itself.

    PyTorch saves storages whole, and those of one mapping are one storage.
    """
    import torch

    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return {
        name: torch.from_numpy(
            np.memmap(path, np.float32, "c", 8 + length + tensor["data_offsets"][0],
                      tuple(tensor["shape"]))
        )
        for name, tensor in header.items()
    }  # fmt: skip


def _write_training(drawn: Path, config: MARConfig, path: Path) -> None:
    """Write all that the released training keeps, each tensor with bytes of its own."""
    import torch

    model, first, second = mapped(drawn), mapped(drawn), mapped(drawn)
    moments = {
        number: {"step": torch.tensor(1.0), "exp_avg": first[name], "exp_avg_sq": second[name]}
        for number, name in enumerate(model)
    }
    arguments = argparse.Namespace(
        img_size=config.img_size, vae_stride=config.vae_stride, patch_size=config.patch_size,
        vae_embed_dim=config.vae_embed_dim, class_num=config.class_num,
        buffer_size=config.buffer_size, diffloss_d=config.diffloss_d, diffloss_w=config.diffloss_w,
        epochs=400, ema_rate=0.9999,
    )  # fmt: skip
    content = {
        "model": model, "model_ema": _averages(drawn),
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "params": [*moments]}]},
        "epoch": 399, "scaler": {"scale": 65536.0}, "args": arguments,
    }  # fmt: skip
    torch.save(content, path)


def _write_averages(drawn: Path, config: MARConfig, path: Path) -> None:
    """Write averages alone."""
    import torch

    del config
    torch.save({"model_ema": _averages(drawn)}, path)


def _averages(drawn: Path) -> dict[str, Tensor]:
    """Averages as the released training has them: parameters."""
    from torch import nn

    return {name: nn.Parameter(t, requires_grad=False) for name, t in mapped(drawn).items()}


def _write_shards(drawn: Path, config: MARConfig, folder: Path) -> None:
    """Write a folder with shards of about one size and their index."""
    from safetensors.torch import save_file

    del config
    state = mapped(drawn)
    size, before = drawn.stat().st_size / _SHARDS, 0
    shards: list[dict[str, Tensor]] = [{} for _ in range(_SHARDS)]
    for name, tensor in state.items():
        number = min(int(before / size), _SHARDS - 1)
        shards[number][name] = tensor
        before += tensor.nbytes
    folder.mkdir()
    places: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{_SHARDS:05}.safetensors"
        save_file(tensors, folder / file)
        places |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": before}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)


# What writes each form of file but the one that is drawn.
WRITERS: dict[str, Callable[[Path, MARConfig, Path], None]] = {
    "training": _write_training,
    "ema": _write_averages,
    "shards": _write_shards,
}
