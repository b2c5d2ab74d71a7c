"""Train the models of the `fashion-mnist` zoo: `python -m csd.models.training --help`."""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ...runtime.command.files import write_atomically, write_json
from ...runtime.command.parser import Parser, run_command
from ...runtime.command.text import plain
from ...runtime.config import MARConfig
from ...runtime.errors import CsdError, OptionError
from ..checkpoint import load_into, read_state_dict
from ..kl_decoder import load_kl_decoder
from ..kl_names import decoder_names
from .autoencoder import (
    AutoencoderRecipe,
    load_autoencoder,
    posterior_of,
    reconstruction_psnr,
    train_autoencoder,
)
from .classifier import accuracy, export_classifier, load_classifier, train_classifier
from .data import DEFAULT_DATA, framed, load_images
from .decoder import DecoderRecipe, train_decoder
from .kl_encoder import KLAutoencoder
from .latents import Latents, load_latents, save_latents
from .loop import run_files
from .silent_channels import without_silent_channels
from .trainer import Recipe, train

MAX_COUNT = 2**31 - 1
MAX_SEED = 2**63 - 1


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = Parser(
        prog="python -m csd.models.training",
        description="Train the models of the fashion-mnist zoo: the autoencoder, then target and "
        "draft on its latents, and the classifier. A run that was interrupted resumes from its "
        "last checkpoint when started again, and goes on where --steps is raised.",
        example="python -m csd.models.training target --out zoo --steps 7000",
        lower="--batch",
    )
    parser.add_argument(
        "what",
        choices=(*TRAINERS, "target", "draft"),
        help="what to train; latents are made by the autoencoder that is in --out",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of weights and logs")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="directory of the data set")
    parser.add_argument("--steps", type=int, default=7000, help="training steps of a model")
    parser.add_argument(
        "--decay-steps", type=int, help="last steps, in which the rate falls to 0; else a fifth"
    )
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument(
        "--features", type=Path, metavar="FILE",
        help="weights of a classifier of another seed, which the decoder is trained with",
    )  # fmt: skip
    parser.add_argument(
        "--start", type=Path, metavar="FILE",
        help="weights that a target or draft begins with, of another run of it (default: random)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the classifier")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    parser.add_argument("--device", default="cpu", help="torch device: cpu, cuda, cuda:1")
    parser.add_argument(
        "--head-repeats", type=int, default=2, help="draws of (timestep, noise) a token and step"
    )
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    return parser


def _save_half(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in half precision, which halves what ships; they are read back as float32."""
    _save({k: v.detach().cpu().half().contiguous() for k, v in weights.items()}, path)


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    with write_atomically(path) as stream:
        stream.write(save(dict(weights)))


def _images(args: argparse.Namespace, split: str) -> tuple[Tensor, Tensor]:
    """Images and labels; --out is made once nothing is refused any more."""
    images, labels = load_images(args.data, split)
    args.out.mkdir(parents=True, exist_ok=True)
    return images, labels


def _train_model(args: argparse.Namespace) -> None:
    recipe = Recipe(
        steps=args.steps, decay_steps=args.decay_steps, batch=args.batch,
        learning_rate=args.learning_rate, head_repeats=args.head_repeats, seed=args.seed,
    )  # fmt: skip
    try:
        device = torch.device(args.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = plain(str(error).splitlines()[0], 120)
        raise CsdError(
            f"no device {plain(args.device, 60)!r} ({reason}): give --device cpu"
        ) from error
    _, labels = load_images(args.data, "train")
    latents = load_latents(args.out / "latents.safetensors")
    preset = MARConfig.load(f"fashion_latent_{args.what}")
    config = dataclasses.replace(
        preset, vae_embed_dim=latents.channels, latent_scale=round(latents.scale, 5)
    )
    model = train(
        config, recipe, latents, labels, run_files(args.out, args.what),
        device=device, start=args.start, bf16=args.bf16, save_every=args.save_every,
    )  # fmt: skip
    _save_half(model.state_dict(), args.out / f"{args.what}.safetensors")
    write_json(args.out / f"{args.what}.json", config.to_dict())


def _train_autoencoder(args: argparse.Namespace) -> None:
    recipe = AutoencoderRecipe(
        steps=args.steps, decay_steps=args.decay_steps, batch=args.batch,
        learning_rate=args.learning_rate, seed=args.seed,
    )  # fmt: skip
    images = framed(_images(args, "train")[0])
    test_images = framed(_images(args, "t10k")[0])
    files = run_files(args.out, args.what)
    model = train_autoencoder(recipe, images, files, save_every=args.save_every)
    model = without_silent_channels(model, images[:2000])
    path = args.out / "autoencoder.safetensors"
    _save_half(model.state_dict(), path)
    load_into(model, read_state_dict(path), path)  # with the rounding that others read
    state = model.state_dict()
    decoder = {name: state[name] for name in decoder_names(state)}
    _save_half(decoder, args.out / "decoder.safetensors")
    psnr = reconstruction_psnr(model, test_images)
    latents = _encode(model, images, args)
    figures = {
        "kept_channels": latents.channels,
        "test_psnr": round(psnr, 3),
        "latent_scale": round(latents.scale, 5),
    }
    write_json(args.out / "autoencoder.json", {**dataclasses.asdict(recipe), **figures})
    print(f"autoencoder: {psnr:.2f} dB on {len(test_images)} test images", flush=True)


def _encode(model: KLAutoencoder, images: Tensor, args: argparse.Namespace) -> Latents:
    latents = Latents(*posterior_of(model, images))
    save_latents(latents, args.out / "latents.safetensors")
    return latents


def _make_latents(args: argparse.Namespace) -> None:
    images = framed(load_images(args.data, "train")[0])
    latents = _encode(load_autoencoder(args.out / "autoencoder.safetensors"), images, args)
    print(f"latents of {len(images)} images, scale {latents.scale:.5f}", flush=True)


def _train_decoder(args: argparse.Namespace) -> None:
    if args.features is None:
        raise OptionError("the decoder needs --features FILE: give a classifier of another seed")
    recipe = DecoderRecipe(
        steps=args.steps, decay_steps=args.decay_steps, batch=args.batch,
        learning_rate=args.learning_rate, seed=args.seed,
    )  # fmt: skip
    images = framed(load_images(args.data, "train")[0])
    test_images = framed(load_images(args.data, "t10k")[0])
    autoencoder = load_autoencoder(args.out / "autoencoder.safetensors")
    decoder = train_decoder(
        load_kl_decoder(args.out / "autoencoder.safetensors"), load_classifier(args.features),
        recipe, images, load_latents(args.out / "latents.safetensors"),
        run_files(args.out, args.what), save_every=args.save_every,
    )  # fmt: skip
    path = args.out / "decoder.safetensors"
    _save_half(decoder.state_dict(), path)
    load_into(autoencoder, {**autoencoder.state_dict(), **read_state_dict(path)}, path)
    psnr = reconstruction_psnr(autoencoder, test_images)
    figures = {**dataclasses.asdict(recipe), "test_psnr": round(psnr, 3)}
    write_json(args.out / "decoder.json", figures)
    print(f"decoder: {psnr:.2f} dB on {len(test_images)} test images", flush=True)


def _train_classifier(args: argparse.Namespace) -> None:
    images, labels = _images(args, "train")
    test_images, test_labels = _images(args, "t10k")
    model = train_classifier(framed(images), labels, epochs=args.epochs, seed=args.seed)
    score = accuracy(model, framed(test_images), test_labels)
    print(f"classifier: {score:.4f} of {len(test_images)} test images", flush=True)
    _save(model.state_dict(), args.out / "classifier.safetensors")
    export_classifier(model, args.out / "classifier.onnx")


TRAINERS = {
    "autoencoder": _train_autoencoder,
    "latents": _make_latents,
    "decoder": _train_decoder,
    "classifier": _train_classifier,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Train what was asked for."""
    for name in ("steps", "batch", "save_every", "head_repeats", "epochs", "threads"):
        if not 1 <= getattr(args, name) <= MAX_COUNT:
            raise OptionError(f"{name} is {getattr(args, name)}: give 1 to {MAX_COUNT}")
    if not 0 <= args.seed <= MAX_SEED:
        raise OptionError(f"seed is {args.seed}: give a whole number from 0 to 2**63 - 1")
    if args.decay_steps is None:
        args.decay_steps = args.steps // 5
    if not 0 <= args.decay_steps <= args.steps:
        raise OptionError(f"decay-steps is {args.decay_steps}: give 0 to {args.steps} (--steps)")
    if not (math.isfinite(args.learning_rate) and args.learning_rate > 0):
        raise OptionError(f"learning-rate is {args.learning_rate}: give a number above 0")
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # averages of vanishing gradients would slow a CPU down
    try:
        TRAINERS.get(args.what, _train_model)(args)
    finally:
        torch.set_flush_denormal(False)  # it is the process's, and others count on small numbers
    return 0
