"""How near `--head parallel` is to the sequential: `python -m csd.tools.measure.head_fidelity`."""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ...runtime.command.parser import Parser, parse_list
from ...runtime.options import GenerateOptions
from ...runtime.result import GenerateResult
from ...runtime.session import Session
from ..option_values import COUNT, real_number_reader
from ..quality import balanced_labels
from .frame import Figures, check_runs, figures_table, measuring_parser, run_script

DEFAULT_TOLERANCES = "0.3,0.1,0.03,0.01"


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = measuring_parser(
        "head_fidelity",
        "Compare the parallel head with the sequential one, by tolerance: sweeps and PSNR of whole "
        "images of the same seed; and CSD's acceptance with the target's aligned chains solved in "
        "parallel and in sequence.",
        "--images 20 --json fidelity.json",
    )
    parser.add_argument("--images", type=COUNT, default=20, help="images, decoded one by one")
    parser.add_argument("--gamma", type=COUNT, default=8, help="of csd")
    parser.add_argument("--tolerances", default=DEFAULT_TOLERANCES, help="values to compare")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    return run_script(build_parser(), argv, check=_check, measure=_figures)


def _tolerances(args: argparse.Namespace) -> list[float]:
    return parse_list("tolerances", args.tolerances, real_number_reader(0, 1000))


def _check(session: Session, args: argparse.Namespace) -> None:
    _tolerances(args)
    if "draft" in session.bundle.manifest.models:
        check_runs(session, GenerateOptions(mode="csd", gamma=args.gamma, cfg=args.cfg))


def _figures(session: Session, args: argparse.Namespace) -> Figures:
    tolerances = _tolerances(args)
    images = _compare_images(session, args, tolerances)
    csd = _compare_csd(session, args, tolerances)
    tables = [_table("target --head parallel against sequential", images)]
    if csd:
        tables.append(_table("csd, by tolerance of the target's aligned chains", csd))
    return Figures(tables, {"images_of_one_seed": images, "csd": csd})


def _generate(session: Session, args: argparse.Namespace, **changes: Any) -> list[GenerateResult]:
    """One image after the other, as at batch 1."""
    options = GenerateOptions(cfg=args.cfg, **changes)
    labels = balanced_labels(args.images, session.bundle.manifest.target.class_num)
    return [
        session.generate([label], options, seed=args.seed, first_image=index)
        for index, label in enumerate(labels)
    ]


def _compare_images(
    session: Session, args: argparse.Namespace, tolerances: Sequence[float]
) -> list[dict[str, float]]:
    wanted = _generate(session, args, mode="target", head="sequential")
    rows: list[dict[str, float]] = []
    for tolerance in tolerances:
        made = _generate(session, args, mode="target", head="parallel", head_tolerance=tolerance)
        ratios = [
            psnr(ours.latents, theirs.latents) for ours, theirs in zip(made, wanted, strict=True)
        ]
        tokens = sum(result.stats.head_tokens["target"] for result in made)
        rows.append(
            {
                "tolerance": tolerance,
                "sweeps_per_token": (
                    sum(result.stats.head_rounds["target"] for result in made) / tokens
                ),
                "rows_per_token": sum(result.stats.head_rows["target"] for result in made) / tokens,
                "psnr_least": min(ratios),
                "psnr_median": float(np.median(ratios)),
            }
        )
    return rows


def _compare_csd(
    session: Session, args: argparse.Namespace, tolerances: Sequence[float]
) -> list[dict[str, float]]:
    """Drafts are speculative, aligned chains parallel; tolerance 0 is the sequential chain.

    Empty without a draft.
    """
    if "draft" not in session.bundle.manifest.models:
        return []
    rows: list[dict[str, float]] = []
    for tolerance in (0.0, *tolerances):
        made = _generate(
            session,
            args,
            mode="csd",
            head="speculative",
            gamma=args.gamma,
            head_tolerance=tolerance,
        )
        stats = [result.stats for result in made]
        verifications = sum(each.verifications for each in stats)
        rows.append(
            {
                "tolerance": tolerance,
                "acceptance_rate": (
                    sum(each.accepted for each in stats) / sum(each.drafted for each in stats)
                ),
                "sweeps_per_block": (
                    sum(each.aligned_evaluations for each in stats) / verifications
                ),
                "seconds_per_image": float(np.median([each.seconds for each in stats])),
            }
        )
    return rows


def psnr(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Peak signal-to-noise ratio in dB of latents, clipped to their range [-1, 1]."""
    difference = np.clip(ours, -1, 1).astype(np.float64) - np.clip(theirs, -1, 1)
    return float(10 * np.log10(4 / max(np.square(difference).mean(), 1e-20)))


def _table(title: str, rows: Sequence[dict[str, float]]) -> Table:
    columns = [column.replace("_", " ") for column in rows[0]]
    return figures_table(title, columns, ([f"{v:.4g}" for v in row.values()] for row in rows))
