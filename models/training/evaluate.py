"""How good a model in training is: `python -m csd.models.training.evaluate --help`.

Distances are Frechet distances of the classifier's features from those of 10,000 training images.
Each is one of as many images as are generated, so that all have the same bias:

| set | what it tells |
| --- | --- |
| `real` | the least that a perfect model would have: test images |
| `noisy` | what Gaussian noise of standard deviation 0.1, of pixels in [-1, 1], costs test images |
| `reconstructed` | what the autoencoder costs test images |
| `generated` | the model, by guidance scale |
"""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...runtime.command.parser import Parser, parse_list, run_command
from ...runtime.config import MARConfig
from ...runtime.errors import CsdError, OptionError
from ..kl_decoder import load_kl_decoder
from ..mar import MAR
from .autoencoder import load_autoencoder, posterior_of
from .checkpoints import read_checkpoint
from .classifier import classify, load_classifier
from .data import DEFAULT_DATA, framed, load_images
from .frechet import frechet_distance
from .loop import run_files
from .sampling import as_bytes, decode_shown, sample_latents

REFERENCE_IMAGES = 10_000
NOISE = 0.1  # standard deviation, of pixels in [-1, 1]


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = Parser(
        prog="python -m csd.models.training.evaluate",
        description="Measure a target or draft in training, or trained: the share of its images "
        "that the classifier recognises, and their Frechet distance beside that of real ones.",
        example="python -m csd.models.training.evaluate zoo --what target --png samples.png",
    )
    parser.add_argument("zoo", type=Path, help="directory that the models are trained in")
    parser.add_argument("--what", choices=("target", "draft"), default="target", help="the model")
    parser.add_argument("--images", type=int, default=400, help="images of each set")
    parser.add_argument("--scales", default="1,3", help="guidance scales")
    parser.add_argument("--num-iter", type=int, default=16, help="AR steps")
    parser.add_argument("--head-steps", type=int, default=50, help="head steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of images and noise")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="directory of the data set")
    parser.add_argument(
        "--png",
        type=Path,
        metavar="FILE",
        help="save images: real, reconstructed, and generated at each scale",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, print, and append to the model's file of evaluations."""
    for name, least in (("images", 2), ("num_iter", 1), ("head_steps", 1), ("threads", 1)):
        if getattr(args, name) < least:
            raise OptionError(f"{name} is {getattr(args, name)}: give at least {least}")
    scales = parse_list("scales", args.scales, float)
    torch.set_num_threads(args.threads)
    classifier = load_classifier(args.zoo / "classifier.safetensors")
    real = framed(load_images(args.data, "t10k")[0])[: args.images]
    training = framed(load_images(args.data, "train")[0])[:REFERENCE_IMAGES]
    reference = classify(classifier, training)[1]

    def distance(images: Tensor) -> float:
        return round(frechet_distance(classify(classifier, images)[1], reference), 3)

    decoder = load_kl_decoder(args.zoo / "decoder.safetensors")
    autoencoder = load_autoencoder(args.zoo / "autoencoder.safetensors")
    made = decode_shown(decoder, posterior_of(autoencoder, real)[0], 1.0)
    rng = torch.Generator().manual_seed(args.seed)
    noisy = as_bytes(real + NOISE * torch.randn(real.shape, generator=rng))
    model, step = load_average(args.zoo, args.what)
    record: dict[str, Any] = {
        "model": args.what, "step": step, "images": args.images, "num_iter": args.num_iter,
        "head_steps": args.head_steps, "seed": args.seed,
        "real": distance(real), "noisy": distance(noisy), "reconstructed": distance(made),
    }  # fmt: skip
    labels = torch.arange(args.images) % model.config.class_num
    rows: list[Tensor] = []
    generated: list[dict[str, float]] = []
    for cfg in scales:
        latents = sample_latents(
            model, labels, cfg=cfg, num_iter=args.num_iter, head_steps=args.head_steps,
            seed=args.seed,
        )  # fmt: skip
        images = decode_shown(decoder, latents, model.config.latent_scale)
        recognised = float((classify(classifier, images)[0] == labels.numpy()).mean())
        generated.append(
            {
                "cfg": cfg, "distance": distance(images), "recognised": round(recognised, 4),
                "latent_std": round(float(latents.std()), 4),
            }
        )  # fmt: skip
        print(json.dumps(generated[-1]), flush=True)
        rows.append(images)
    record["generated"] = generated
    with (args.zoo / f"{args.what}.evaluations.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
    print(json.dumps(record), flush=True)
    if args.png:
        save_sheet([real, made, *rows], args.png)
    return 0


def load_average(zoo: Path, what: str) -> tuple[MAR, int]:
    """Return the averaged model of a run in `zoo` and its step, of the state that is furthest.

    Raises:
        CsdError: there is no checkpoint, or it is damaged.
    """
    files = run_files(zoo, what)
    paths = [path for path in (files.checkpoint, files.decaying) if path.is_file()]
    if not paths:
        raise CsdError(f"no checkpoint at {files.checkpoint}: train the {what} first")
    states = [read_checkpoint(path, torch.device("cpu")) for path in paths]
    content = max(states, key=lambda state: int(state["step"]))
    model = MAR(MARConfig.from_dict(content["config"]))
    model.load_state_dict(content["model_ema"])
    return model.eval(), int(content["step"])


def save_sheet(rows: Sequence[Tensor], path: Path, columns: int = 20) -> None:
    """Write the first images of each of `rows`, `[N, 1, H, W]` in [-1, 1], two lines each."""
    from PIL import Image

    lines: list[np.ndarray] = []
    for images in rows:
        shown = ((images[: 2 * columns, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
        lines += [np.concatenate(list(part), axis=1) for part in np.split(shown, [columns])]
    Image.fromarray(np.concatenate(lines)).save(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, build_parser(), argv)
