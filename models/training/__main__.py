"""Train the models of the `fashion-mnist` zoo: `python -m csd.models.training --help`."""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from ...runtime.command.files import write_atomically, write_json
from ...runtime.command.parser import Parser, run_command
from ...runtime.config import MARConfig
from ...runtime.errors import CsdError, OptionError
from .classifier import accuracy, export_classifier, train_classifier
from .data import DEFAULT_DATA, load_images
from .trainer import Recipe, train

MAX_COUNT = 2**31 - 1
MAX_SEED = 2**63 - 1


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = Parser(
        prog="python -m csd.models.training",
        description="Train the draft, the target or the classifier of the fashion-mnist zoo. "
        "A run that was interrupted resumes from its last checkpoint when started again.",
        example="python -m csd.models.training target --out zoo --steps 7000",
        lower="--batch",
    )
    parser.add_argument("what", choices=("target", "draft", "classifier"), help="what to train")
    parser.add_argument("--out", type=Path, required=True, help="directory of weights and logs")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="directory of the data set")
    parser.add_argument("--steps", type=int, default=7000, help="training steps of a model")
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
    args.out.mkdir(parents=True, exist_ok=True)
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
    with write_atomically(args.out / f"{args.what}.safetensors") as stream:
        stream.write(save(weights))
    write_json(args.out / f"{args.what}.json", config.to_dict())


def _train_classifier(args: argparse.Namespace) -> None:
    images, labels = load_images(args.data, "train")
    args.out.mkdir(parents=True, exist_ok=True)
    model = train_classifier(
        images, labels, epochs=args.epochs, token_noise=Recipe(steps=1).token_noise, seed=args.seed
    )
    score = accuracy(model, *load_images(args.data, "t10k"))
    print(f"classifier: {score:.4f} of the 10,000 test images", flush=True)
    export_classifier(model, args.out / "classifier.onnx")


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Train what was asked for."""
    for name in ("steps", "batch", "epochs", "threads"):
        if not 1 <= getattr(args, name) <= MAX_COUNT:
            raise OptionError(f"{name} is {getattr(args, name)}: give 1 to {MAX_COUNT}")
    if not 0 <= args.seed <= MAX_SEED:
        raise OptionError(f"seed is {args.seed}: give a whole number from 0 to 2**63 - 1")
    if not (math.isfinite(args.learning_rate) and args.learning_rate > 0):
        raise OptionError(f"learning-rate is {args.learning_rate}: give a number above 0")
    torch.set_num_threads(args.threads)
    if args.what == "classifier":
        _train_classifier(args)
    else:
        _train_model(args)
    return 0
