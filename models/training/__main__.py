"""Train the models of the `fashion-mnist` zoo: `python -m csd.models.training --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...runtime.cli_support import Parser, run_command
from ...runtime.config import MARConfig
from ...runtime.errors import CsdError, OptionError
from .autoencoder import AutoencoderRecipe, posterior_of, reconstruction_psnr, train_autoencoder
from .classifier import accuracy, export_classifier, train_classifier
from .data import DEFAULT_DATA, framed, load_images
from .latents import Latents, save_latents
from .trainer import Recipe, train


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = Parser(
        prog="python -m csd.models.training",
        description="Train the draft, the target or the classifier of the fashion-mnist zoo. "
        "A run that was interrupted resumes from its last checkpoint when started again.",
        example="python -m csd.models.training target --out zoo --steps 7000",
    )
    parser.add_argument(
        "what", choices=("autoencoder", "target", "draft", "classifier"), help="what to train"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of weights and logs")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="directory of the data set")
    parser.add_argument("--steps", type=int, default=7000, help="training steps of a model")
    parser.add_argument(
        "--decay-steps", type=int, default=1000, help="last steps, in which the rate falls to zero"
    )
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the classifier")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    parser.add_argument("--device", default="cpu", help="torch device: cpu, cuda, cuda:1")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    return parser


def _train_model(args: argparse.Namespace) -> None:
    config = MARConfig.load(f"fashion_mnist_{args.what}")
    recipe = Recipe(
        steps=args.steps, batch=args.batch, learning_rate=args.learning_rate, seed=args.seed
    )
    try:
        device = torch.device(args.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CsdError(f"no device {args.device!r} ({reason}): give --device cpu") from error
    images, labels = load_images(args.data, "train")
    model = train(
        config,
        recipe,
        images,
        labels,
        checkpoint=args.out / f"{args.what}.checkpoint",
        log=args.out / f"{args.what}.log.jsonl",
        device=device,
        bf16=args.bf16,
    )
    # Half precision halves what ships; it is read back as float32.
    weights = {k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, args.out / f"{args.what}.safetensors")
    text = json.dumps(config.to_dict(), indent=1) + "\n"
    (args.out / f"{args.what}.json").write_text(text, encoding="utf-8")


def _train_autoencoder(args: argparse.Namespace) -> None:
    recipe = AutoencoderRecipe(
        steps=args.steps, decay_steps=args.decay_steps, batch=args.batch,
        learning_rate=args.learning_rate, seed=args.seed,
    )  # fmt: skip
    images = framed(load_images(args.data, "train")[0])
    model = train_autoencoder(
        recipe, images,
        checkpoint=args.out / "autoencoder.checkpoint", log=args.out / "autoencoder.log.jsonl",
    )  # fmt: skip
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, args.out / "autoencoder.safetensors")
    model.load_state_dict({k: v.float() for k, v in weights.items()})  # what others will read
    psnr = reconstruction_psnr(model, framed(load_images(args.data, "t10k")[0]))
    latents = Latents(*posterior_of(model, images))
    save_latents(latents, args.out / "latents.safetensors")
    figures = {"test_psnr": round(psnr, 3), "latent_scale": round(latents.scale, 5)}
    text = json.dumps({**dataclasses.asdict(recipe), **figures}, indent=1) + "\n"
    (args.out / "autoencoder.json").write_text(text, encoding="utf-8")
    print(f"autoencoder: {psnr:.2f} dB on the 10,000 test images", flush=True)


def _train_classifier(args: argparse.Namespace) -> None:
    images, labels = load_images(args.data, "train")
    model = train_classifier(
        images, labels, epochs=args.epochs, token_noise=Recipe(steps=1).token_noise, seed=args.seed
    )
    score = accuracy(model, *load_images(args.data, "t10k"))
    print(f"classifier: {score:.4f} of the 10,000 test images", flush=True)
    export_classifier(model, args.out / "classifier.onnx")


def run(args: argparse.Namespace) -> int:
    """Train what was asked for."""
    for name in ("steps", "batch", "epochs", "threads"):
        if getattr(args, name) < 1:
            raise OptionError(f"{name} is {getattr(args, name)}: give at least 1")
    if not (math.isfinite(args.learning_rate) and args.learning_rate > 0):
        raise OptionError(f"learning-rate is {args.learning_rate}: give a number above 0")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    trainers = {"autoencoder": _train_autoencoder, "classifier": _train_classifier}
    trainers.get(args.what, _train_model)(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(run, build_parser()))
