"""Measure the shipped pair for its model card: `python -m csd.tools.measure.zoo_eval --help`."""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...models.zoo import zoo_entry
from ...runtime.bundle.manifest_checks import ROLES
from ...runtime.command.files import output_path
from ...runtime.command.parser import Parser, parse_list
from ...runtime.images import grid, save_png
from ...runtime.libraries.imports import need
from ...runtime.options import HEADS, GenerateOptions
from ...runtime.session import Session
from ..console import progress_report
from ..option_values import COUNT, GUIDANCE
from ..quality import ImageClassifier, as_shown, balanced_labels
from .frame import Figures, check_runs, check_zoo, figures_table, measuring_parser, run_script

ZOO = "fashion-mnist"
SAMPLES_PER_CLASS = 8


# Standard deviation of what was added to the shipped pair's tokens in training.
TOKEN_NOISE = 0.1


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = measuring_parser(
        "zoo_eval",
        "How many images of target and draft of the shipped pair are recognised as the class that "
        "was asked for, by guidance scale; standard deviations of tokens, generated and real.",
        "--images 300 --json zoo.json",
        scale=False,
    )
    parser.add_argument("--images", type=COUNT, default=300, help="images of each model and scale")
    parser.add_argument("--scales", default="1,2,3,4,5", help="guidance scales")
    parser.add_argument("--head", choices=HEADS, default="auto", help="head sampler")
    parser.add_argument(
        "--data", type=Path, help="directory of the data set (default: that of Debian's package)"
    )
    parser.add_argument(
        "--samples",
        type=output_path,
        metavar="FILE.png",
        help="save images of the target (default: not saved)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the evaluation; returns the exit code."""
    return run_script(
        build_parser(),
        argv,
        check=_check,
        measure=_figures,
        outputs=lambda args: {"--samples": args.samples},
    )


def _check(session: Session, args: argparse.Namespace) -> None:
    scales = parse_list("scales", args.scales, GUIDANCE)
    need("zoo_eval", "torch", "safetensors")
    check_zoo(session, ZOO)
    check_runs(session, *(_options(args, role, scale) for role in ROLES for scale in scales))
    _real_images(args)


def _options(args: argparse.Namespace, role: str, scale: float) -> GenerateOptions:
    return GenerateOptions(mode=role, cfg=scale, head=args.head)


def _real_images(args: argparse.Namespace) -> Any:
    """The data set's test images `[N, 1, 28, 28]` and their labels."""
    from ...models.training.data import DEFAULT_DATA, load_images

    return load_images(args.data or DEFAULT_DATA, "t10k")


def _figures(session: Session, args: argparse.Namespace) -> Figures:
    from ...models import load_mar
    from ...models.training.trainer import first_step_error

    progress, entry = progress_report(), zoo_entry(ZOO)
    classifier = ImageClassifier(entry.classifier, args.threads)
    images, labels = _real_images(args)
    real = images.numpy()
    # Real tokens carry the noise that the models were trained with.
    values: dict[str, Any] = {
        "classifier_on_test_images": classifier.accuracy(real, labels.numpy()),
        "real_token_std": float(np.sqrt(real.var() + TOKEN_NOISE**2)),
        "first_step_error": {
            role: first_step_error(load_mar(entry.weights(role), entry.config(role)))
            for role in ROLES
        },
        "models": {role: [] for role in ROLES},
    }
    shown: list[tuple[str, ...]] = []
    for role in ROLES:
        for scale in parse_list("scales", args.scales, GUIDANCE):
            progress(f"{role}, guidance {scale:g}: {args.images} images")
            row = _row(session, classifier, _options(args, role, scale), args)
            values["models"][role].append(row)
            shown.append((role, f"{scale:g}", f"{row['accuracy']:.1%}", f"{row['token_std']:.3f}"))
    if args.samples is not None:
        best = max(values["models"]["target"], key=lambda row: row["accuracy"])
        _save_samples(session, args, _options(args, "target", best["cfg"]))
    errors = ", ".join(f"{role} {error:.4f}" for role, error in values["first_step_error"].items())
    table = figures_table(
        f"recognised of {args.images} images", ("model", "guidance", "recognised", "token std"),
        shown,
    )  # fmt: skip
    table.caption = (
        f"real test images: {values['classifier_on_test_images']:.1%} recognised, token std "
        f"{values['real_token_std']:.3f}\nrms(eps - x) at the last t: {errors}"
    )
    return Figures([table], values)


def _row(
    session: Session, classifier: ImageClassifier, options: GenerateOptions,
    args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    labels = balanced_labels(args.images, session.bundle.manifest.target.class_num)
    made = session.generate(labels, options, seed=args.seed)
    return {
        "cfg": options.cfg,
        "accuracy": classifier.accuracy(as_shown(made.latents), labels),
        "token_std": float(made.tokens.std()),
        "seconds": made.stats.seconds,
    }


def _save_samples(session: Session, args: argparse.Namespace, options: GenerateOptions) -> None:
    """Save images of all classes, a column each."""
    classes = session.bundle.manifest.target.class_num
    labels = balanced_labels(SAMPLES_PER_CLASS * classes, classes)
    made = session.generate(labels, options, seed=args.seed)
    save_png(args.samples, grid(made.images, classes), scale=2)
