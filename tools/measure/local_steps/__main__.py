"""What local AR steps cost and save: `python -m csd.tools.measure.local_steps --help`.

For each number of AR steps and guidance scale, the shipped target with all steps full, with local
steps, and with all steps full at fewer of them, all from the same seed. Batches of all rows take
turns, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ....runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....runtime.command.files import output_path
from ....runtime.command.parser import Parser, parse_list
from ....runtime.errors import OptionError
from ....runtime.libraries.imports import need
from ....runtime.options import GenerateOptions, parse_interval, parse_refresh
from ....runtime.session import Session
from ...console import progress_report
from ...option_values import COUNT, GUIDANCE, real_number_reader, whole_number_reader
from ...plot_files import check_plot
from ..frame import Figures, check_runs, check_zoo, figures_table, measuring_parser, run_script
from .features import FeatureNetwork, real_images
from .plot import plot_rows
from .rows import Row, figures_of, is_whole, make_images, wanted_rows

ZOO = "fashion-mnist"
# Heads whose tokens are the same function of the noise whatever the conditions are: with the
# others, images of one seed part ways at the first transition that is not accepted.
HEADS = ("parallel", "sequential")
COLUMNS = (
    "row", "cfg", "s / image", "rows", "error", "rms", "PSNR", "class accuracy", "Frechet", "+-",
    "fewer AR steps at equal s",
)  # fmt: skip


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = measuring_parser(
        "local_steps",
        "Local AR steps of the shipped target, and guidance in a part of them, beside fewer AR "
        "steps: seconds, distance from the same seed's images with all steps full, class accuracy, "
        "and Frechet distance from training images in the zoo's classifier.",
        "--images 1000 --json local.json --plot local.png",
        scale=False,
    )
    parser.add_argument("--images", type=COUNT, default=1000, help="images of each row")
    parser.add_argument("--batch", type=COUNT, default=8, help="images at once")
    parser.add_argument("--num-iters", default="49,24,16", help="AR steps")
    parser.add_argument("--scales", default="1,3", help="guidance scales")
    parser.add_argument("--refresh", default="2,3,4", help="as csd-generate has it, several")
    parser.add_argument(
        "--refresh-tolerances", default="0.05", help="of --refresh auto, each a row"
    )
    parser.add_argument(
        "--fewer", default="0.75,0.5,0.35,0.25", help="shares of the AR steps, all of them full"
    )
    parser.add_argument(
        "--cfg-intervals",
        default="0:0.75",
        help="as csd-generate --cfg-interval has it, several, each alone and with local steps",
    )
    parser.add_argument("--head", choices=HEADS, default=HEADS[0], help="head sampler")
    parser.add_argument("--head-steps", type=COUNT, default=100, help="head steps")
    parser.add_argument(
        "--reference", type=COUNT, default=10_000, help="training images behind the distances"
    )
    parser.add_argument("--bootstraps", type=COUNT, default=20, help="resamples behind intervals")
    parser.add_argument(
        "--data", type=Path, help="directory of the data set (default: that of Debian's package)"
    )
    parser.add_argument(
        "--plot",
        type=output_path,
        metavar="FILE.png",
        help="draw distance against seconds (default: not drawn)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    return run_script(
        build_parser(), argv, check=_check, measure=_figures,
        outputs=lambda args: {"--plot": args.plot},
    )  # fmt: skip


def _rows(args: argparse.Namespace) -> list[Row]:
    share = real_number_reader(0, 1, above=True)
    base = GenerateOptions(head=args.head, head_steps=args.head_steps)
    return wanted_rows(
        base,
        num_iters=parse_list("num-iters", args.num_iters, whole_number_reader(1, 1_000_000)),
        scales=parse_list("scales", args.scales, GUIDANCE),
        refreshes=parse_list("refresh", args.refresh, parse_refresh),
        tolerances=parse_list(
            "refresh-tolerances", args.refresh_tolerances, real_number_reader(0, 1e6, above=True)
        ),
        fewer=parse_list("fewer", args.fewer, share),
        intervals=parse_list("cfg-intervals", args.cfg_intervals, parse_interval),
    )


def _check(session: Session, args: argparse.Namespace) -> None:
    need("local_steps", "torch", "onnx")
    if args.plot is not None:
        check_plot(args.plot)
    if min(args.images, args.reference) < 2:
        raise OptionError("images or reference is 1: a distance needs two at least")
    check_zoo(session, ZOO, " --local-steps")
    check_runs(session, *(row.options for row in _rows(args)))
    real_images(args.data, 2)


def _figures(session: Session, args: argparse.Namespace) -> Figures:
    progress, rows = progress_report(), _rows(args)
    network = FeatureNetwork.of_zoo(ZOO, args.threads)
    reference = network(real_images(args.data, args.reference))[0]
    made = make_images(session, rows, args.images, args.batch, args.seed, progress)
    values: list[dict[str, Any]] = []
    for row in rows:
        progress(f"judging {row.name}, guidance {row.options.cfg:g}")
        rng = np.random.default_rng(args.seed)
        values.append(figures_of(row, made, network, reference, args.bootstraps, rng))
    _compare(values)
    if args.plot is not None:
        plot_rows(values, args.plot)
    table = figures_table(
        f"{args.images} images of each row, batch {args.batch}, head {args.head}", COLUMNS,
        (_shown(value) for value in values),
    )  # fmt: skip
    table.caption = (
        "rows: of those of all AR steps; rms (of tokens) and PSNR: from the same seed with all AR "
        "steps full and guided; +-: half of a 95 % interval; the last column is the Frechet "
        "distance between rows of fewer AR steps"
    )
    return Figures([table], {"results": values})


def _compare(values: list[dict[str, Any]]) -> None:
    """Add what fewer AR steps give at a row's seconds, by a line between the nearest of them."""
    for value in values:
        if is_whole(value):
            value["frechet_of_fewer_steps_at_equal_seconds"] = None
            continue
        curve = sorted(
            (other["seconds_per_image"], other["frechet"])
            for other in values
            if is_whole(other) and other["group"] == value["group"]
        )
        seconds, distances = zip(*curve, strict=True)
        inside = seconds[0] <= value["seconds_per_image"] <= seconds[-1]
        value["frechet_of_fewer_steps_at_equal_seconds"] = (
            float(np.interp(value["seconds_per_image"], seconds, distances)) if inside else None
        )


def _shown(value: dict[str, Any]) -> list[str]:
    error, other = value["refresh_error"], value["frechet_of_fewer_steps_at_equal_seconds"]
    return [
        value["name"], f"{value['cfg']:g}", f"{value['seconds_per_image']:.3f}",
        f"{value['backbone_rows_share']:.0%}", "" if error is None else f"{error:.3f}",
        f"{value['rms']:.3f}", "" if value["psnr"] is None else f"{value['psnr']:.1f}",
        f"{value['accuracy']:.1%}", f"{value['frechet']:.3f}",
        f"{value['frechet_half_interval']:.3f}", "" if other is None else f"{other:.3f}",
    ]  # fmt: skip
