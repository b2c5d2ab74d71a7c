"""What each precision costs and keeps, on the CPU: `python -m csd.tools.measure.precisions`."""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from ...runtime.backends.onnx_runtime import PRECISIONS
from ...runtime.bundle.manifest import Manifest, needed_graphs
from ...runtime.command.parser import Parser
from ...runtime.options import GenerateOptions
from ...runtime.result import GenerateResult
from ...runtime.session import Session
from ..console import progress_report
from ..option_values import COUNT
from ..quality import as_shown, balanced_labels, bundle_classifier
from .frame import Figures, check_runs, figures_table, measuring_parser, run_script

_BACKEND = "onnxruntime"


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = measuring_parser(
        "precisions",
        "Decode the same noise in every precision that a bundle has for the CPU: bytes of the "
        "graphs, seconds an image, distance of the tokens from those of float32, and, of the "
        "shipped pair, the share of images that are recognised. Images are decoded one by one, in "
        "turns.",
        "--images 40 --json precisions.json",
    )
    parser.add_argument("--images", type=COUNT, default=20, help="images of each precision")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    return run_script(build_parser(), argv, check=_check, measure=_figures, backend=_BACKEND)


def _options(args: argparse.Namespace) -> GenerateOptions:
    # Heads that accept or reject turn a small difference into another sample.
    return GenerateOptions(mode="target", head="sequential", cfg=args.cfg)


def _check(session: Session, args: argparse.Namespace) -> None:
    check_runs(session, _options(args))


def _figures(session: Session, args: argparse.Namespace) -> Figures:
    bundle = session.bundle
    precisions = [name for name in PRECISIONS if name in bundle.manifest.precisions]
    labels = balanced_labels(args.images, bundle.manifest.target.class_num)
    made: dict[str, list[GenerateResult]] = {name: [] for name in precisions}
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(bundle.session(_BACKEND, args.threads, precision=name))
            for name in precisions
        }
        for each in sessions.values():  # warms up
            each.generate(labels[:1], _options(args), seed=args.seed)
        progress = progress_report()
        for index, label in enumerate(labels):
            progress(f"image {index + 1}/{len(labels)}")
            for name, each in sessions.items():
                made[name].append(
                    each.generate([label], _options(args), seed=args.seed, first_image=index)
                )
    classifier = bundle_classifier(bundle, args.threads)
    rows: list[dict[str, Any]] = []
    for name in precisions:
        row = {
            "precision": name,
            "graph_bytes": _bytes(bundle.manifest, name, session),
            **_compared(made[name], made[precisions[0]]),
            "accuracy": None,
        }
        if classifier is not None:
            shown = as_shown(np.concatenate([result.latents for result in made[name]]))
            row["accuracy"] = classifier.accuracy(shown, labels)
        rows.append(row)
    table = figures_table(
        f"{bundle.manifest.name}, target, {args.images} images one by one, distances from "
        f"{precisions[0]}",
        ("precision", "MB", "s / image", "backbone s", "token rms", "PSNR, dB", "recognised"),
        map(_shown, rows),
    )
    return Figures([table], {"precisions": rows})


def _bytes(manifest: Manifest, precision: str, session: Session) -> int:
    """Bytes of the files of the target's graphs in a precision."""
    table, needed = manifest.tables[precision], needed_graphs(manifest)
    names = {
        name for graph in needed if not graph.startswith("draft.") for name in table[graph].files
    }
    return sum((session.bundle.path / name).stat().st_size for name in names)


def _compared(
    made: Sequence[GenerateResult], wanted: Sequence[GenerateResult]
) -> Mapping[str, float | None]:
    """Seconds an image, and the distance between two lots of images of the same noise."""
    tokens = np.stack([result.tokens for result in made]).astype(np.float64)
    others = np.stack([result.tokens for result in wanted]).astype(np.float64)
    mean_square = float(np.square(tokens - others).mean())
    seconds = [result.stats.seconds for result in made]
    backbone = [result.stats.parts["target backbone"] for result in made]
    return {
        "seconds_per_image": float(np.median(seconds)),
        "backbone_seconds_per_image": float(np.median(backbone)),
        "token_rms": mean_square**0.5,
        # Tokens of pixels and latents of images span about [-1, 1]: a peak of 2.
        "psnr": 10 * float(np.log10(4 / mean_square)) if mean_square else None,
    }


def _shown(row: Mapping[str, Any]) -> list[str]:
    psnr, accuracy = row["psnr"], row["accuracy"]
    return [
        row["precision"],
        f"{row['graph_bytes'] / 1e6:.1f}",
        f"{row['seconds_per_image']:.3f}",
        f"{row['backbone_seconds_per_image']:.3f}",
        f"{row['token_rms']:.2g}",
        "" if psnr is None else f"{psnr:.1f}",
        "" if accuracy is None else f"{accuracy:.0%}",
    ]
