"""What watching a run costs: `python -m csd.tools.measure.stream --help`.

In turns an image is generated and streamed, by one session, with nothing asked of the events. The
figure is the median over all pairs of the ratio within a pair, as neighbours in time see the same
machine.
"""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...runtime.command.parser import Parser
from ...runtime.options import GenerateOptions
from ...runtime.session import Session
from ..option_values import COUNT
from .clock import CLOCKS, add_clock_argument
from .frame import Figures, check_runs, figures_table, measuring_parser, run_script

WARM_UPS = 2


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = measuring_parser(
        "stream",
        "Time of a stream whose events are taken and not looked at, beside generate.",
        "--threads 1 --clock cpu --images 40",
    )
    parser.add_argument("--images", type=COUNT, default=40, help="pairs of images in each mode")
    add_clock_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all modes; returns the exit code."""
    return run_script(build_parser(), argv, check=_check, measure=_figures)


def _ways(args: argparse.Namespace) -> dict[str, GenerateOptions]:
    return {
        "target": GenerateOptions(cfg=args.cfg),
        "csd, block": GenerateOptions(mode="csd", cfg=args.cfg),
        "csd, prefix": GenerateOptions(mode="csd", verify="prefix", cfg=args.cfg),
    }


def _check(session: Session, args: argparse.Namespace) -> None:
    check_runs(session, *_ways(args).values())


def _figures(session: Session, args: argparse.Namespace) -> Figures:
    rows: list[dict[str, Any]] = [
        {"way": way, **_measured(session, options, args)} for way, options in _ways(args).items()
    ]
    table = figures_table(
        f"a stream beside generate, {args.images} pairs, {args.clock} clock",
        ("way", "ms, generate", "ms, stream", "stream / generate", "quartiles"),
        (
            (
                row["way"], *(f"{1e3 * row[name]:.1f}" for name in ("generate", "stream")),
                f"{row['ratio']:.4f}", f"{row['quartiles'][0]:.4f} to {row['quartiles'][1]:.4f}",
            )
            for row in rows
        ),
    )  # fmt: skip
    return Figures([table], {"stream": rows})


def _measured(
    session: Session, options: GenerateOptions, args: argparse.Namespace
) -> dict[str, Any]:
    """Median seconds of both, and of their ratio in a pair."""
    clock = CLOCKS[args.clock]

    def generate(image: int) -> None:
        session.generate([0], options, seed=args.seed, first_image=image)

    def stream(image: int) -> None:
        with session.stream([0], options, seed=args.seed, first_image=image) as events:
            for _ in events:
                pass

    def timed(run: Callable[[int], None], image: int) -> float:
        began = clock()
        run(image)
        return clock() - began

    for image in range(WARM_UPS):
        generate(image)
    taken: dict[str, list[float]] = {"generate": [], "stream": []}
    for image in range(args.images):
        pair = (("generate", generate), ("stream", stream))
        for name, run in pair if image % 2 else reversed(pair):
            taken[name].append(timed(run, image))
    ratios = np.divide(taken["stream"], taken["generate"])
    first, middle, third = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
    medians = {name: float(np.median(seconds)) for name, seconds in taken.items()}
    return {**medians, "ratio": middle, "quartiles": [first, third]}
