"""Measure the shipped pair for its model card: `python -m csd.tools.zoo_eval --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..models import load_mar
from ..models.training.data import DEFAULT_DATA, load_images
from ..models.training.trainer import first_step_error
from ..models.zoo import zoo_entry
from ..runtime.bundle import Bundle
from ..runtime.cli_support import Parser, parse_list, run_command
from ..runtime.errors import OptionError
from ..runtime.files import check_writable, write_json
from ..runtime.images import grid, save_png
from ..runtime.options import GenerateOptions
from ..runtime.session import Session
from .machine import describe_machine
from .quality import ImageClassifier, as_shown, balanced_labels

ZOO = "fashion-mnist"
TOKEN_NOISE = 0.1  # standard deviation of what was added to the shipped pair's tokens in training


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = Parser(
        prog="python -m csd.tools.zoo_eval",
        description="How many images of target and draft are recognised as the class that was "
        "asked for, by guidance scale; standard deviations of tokens, generated and real.",
        example="python -m csd.tools.zoo_eval bundle --images 300 --json zoo.json",
    )
    parser.add_argument("bundle", type=Path, help="bundle of the fashion-mnist zoo")
    parser.add_argument("--images", type=int, default=300, help="images of each model and scale")
    parser.add_argument("--scales", default="1,2,3,4,5", help="guidance scales")
    parser.add_argument("--head", default="auto", help="head sampler")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="directory of the data set")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    parser.add_argument(
        "--samples", type=Path, metavar="FILE.png", help="save images of the target"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the evaluation; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Measure both models."""
    console = Console(highlight=False)
    scales = parse_list("scales", args.scales, float)
    if args.images < 1:
        raise OptionError(f"images is {args.images}: give at least 1")
    for path in (args.json, args.samples):
        if path is not None:
            check_writable(path)
    classifier = ImageClassifier(zoo_entry(ZOO).classifier, args.threads)
    images, labels = load_images(args.data, "t10k")
    real = images.numpy()
    # Real tokens carry the noise that the models were trained with.
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "images": args.images,
        "seed": args.seed,
        "head": args.head,
        "classifier_on_test_images": classifier.accuracy(real, labels.numpy()),
        "real_token_std": float(np.sqrt(real.var() + TOKEN_NOISE**2)),
        "models": {},
        "first_step_error": {},
    }
    console.print(f"classifier: {report['classifier_on_test_images']:.1%} of the real test images")
    for role in ("target", "draft"):
        model = load_mar(zoo_entry(ZOO).weights(role), zoo_entry(ZOO).config(role))
        report["first_step_error"][role] = error = first_step_error(model)
        console.print(f"{role}: rms(eps - x) at the last t {error:.4f}")
    with Bundle.open(args.bundle).session(threads=args.threads) as session:
        for role in ("target", "draft"):
            rows = [_row(session, classifier, role, scale, args, console) for scale in scales]
            report["models"][role] = rows
        best = max(report["models"]["target"], key=lambda row: row["accuracy"])
        if args.samples is not None:
            options = GenerateOptions(mode="target", cfg=best["cfg"], head=args.head)
            made = session.generate(balanced_labels(80, 10), options, seed=args.seed)
            save_png(args.samples, grid(made.images, 10), scale=2)
    if args.json is not None:
        write_json(args.json, report)
    return 0


def _row(
    session: Session,
    classifier: ImageClassifier,
    role: str,
    scale: float,
    args: argparse.Namespace,
    console: Console,
) -> dict[str, Any]:
    labels = balanced_labels(args.images, session.bundle.manifest.target.class_num)
    options = GenerateOptions(mode=role, cfg=scale, head=args.head)
    made = session.generate(labels, options, seed=args.seed)
    accuracy = classifier.accuracy(as_shown(made.latents), labels)
    row = {
        "cfg": scale,
        "accuracy": accuracy,
        "token_std": float(made.tokens.std()),
        "seconds": made.stats.seconds,
    }
    console.print(
        f"{role}, guidance {scale:g}: {accuracy:.1%} of {len(labels)} images recognised, "
        f"token std {row['token_std']:.3f}"
    )
    return row


if __name__ == "__main__":
    raise SystemExit(main())
