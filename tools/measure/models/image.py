"""Open a bundle and make one image of few steps: what that takes, as JSON on stdout.

    python -m csd.tools.measure.models.image BUNDLE --threads 1

A process of its own, whose memory can be watched; it brings no PyTorch, as on a device.
"""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ....runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ....runtime.bundle.bundle import Bundle
from ....runtime.command.parser import Parser, run_command
from ....runtime.errors import CsdError
from ....runtime.options import GenerateOptions
from ...option_values import THREADS

AR_STEPS, HEAD_STEPS = 4, 8


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="python -m csd.tools.measure.models.image",
        description="Open a bundle, make one image of few steps and print the seconds as JSON.",
        example="python -m csd.tools.measure.models.image bundle",
    )
    parser.add_argument("bundle", type=Path, help="directory that csd-export wrote")
    parser.add_argument("--threads", type=THREADS, default=2, help="CPU threads")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make the image; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Make the image.

    Raises:
        CsdError: its latents are not finite.
    """
    began = time.perf_counter()
    bundle = Bundle.open(args.bundle)
    with bundle.session("onnxruntime", args.threads) as session:
        opened = time.perf_counter() - began
        manifest = bundle.manifest
        made = session.generate(
            [0],
            GenerateOptions(
                mode="target",
                head="solver" if manifest.target.solved else "sequential",
                num_iter=min(AR_STEPS, manifest.target.seq_len),
                head_steps=min(HEAD_STEPS, manifest.head_steps),
            ),
        )
    if not np.isfinite(made.latents).all():
        raise CsdError("the latents of the image are not finite: report this with the command")
    print(json.dumps({"open_seconds": opened, "image_seconds": made.stats.seconds}))
    return 0
