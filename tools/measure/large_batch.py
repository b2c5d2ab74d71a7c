"""Speculative decoding at large batch: `python -m csd.tools.measure.large_batch --help`.

The ground on which arXiv 2411.11925 reports its speed-ups (Table 1: 2.33x at batch 256). For each
batch and head the target alone and CSD at every gamma take turns; the least of the repeats counts.
Beside the speed-up stands where CSD's seconds go, by part of the loop.
"""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...runtime.command.parser import Parser, parse_list
from ...runtime.options import ACCEPTANCES, CHAIN_HEADS, GenerateOptions
from ...runtime.session import Session
from ...runtime.stats import PARTS, Stats
from ..console import progress_report
from ..option_values import COUNT, whole_number_reader
from ..quality import balanced_labels
from .clock import CLOCKS, add_clock_argument
from .frame import (
    Figures,
    check_batch,
    check_runs,
    figures_table,
    measuring_parser,
    run_script,
)

COLUMNS = ("batch", "head", "gamma", "ms an image", "over target", "over the best target",
           "accepted", *PARTS)  # fmt: skip


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = measuring_parser(
        "large_batch",
        "Milliseconds an image of the target alone and of speculative decoding at large batch, the "
        "speed-up, and the share of each part. The bundle must take the batch at once: "
        "csd-export --max-batch.",
        "--threads 1 --clock cpu --json large.json",
    )
    parser.add_argument("--batches", default="64,256", help="images at once")
    parser.add_argument("--gammas", default="8,16,32", help="drafted AR steps")
    parser.add_argument("--heads", default="sequential,auto", help="head samplers")
    parser.add_argument(
        "--acceptance", choices=ACCEPTANCES, default=ACCEPTANCES[0], help="as for csd-generate"
    )
    parser.add_argument("--num-iter", type=COUNT, help="AR steps (default: the model's)")
    parser.add_argument("--repeats", type=COUNT, default=2, help="runs of each, of which the least")
    add_clock_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all cases; returns the exit code."""
    return run_script(build_parser(), argv, check=_check, measure=_figures)


@dataclass
class Case:
    """Images at once, options, and what the quickest of the runs took.

    Attributes:
        seconds: an image.
        stats: of that run.
    """

    batch: int
    options: GenerateOptions
    seconds: float = float("inf")
    stats: Stats | None = None


def _cases(args: argparse.Namespace) -> list[Case]:
    """The target first in every batch and head."""
    count = whole_number_reader(1, 1_000_000)
    gammas = parse_list("gammas", args.gammas, count)
    target = GenerateOptions(
        mode="target", num_iter=args.num_iter, cfg=args.cfg, acceptance=args.acceptance
    )
    return [
        Case(batch, replace(target, head=head, **changes))
        for batch in parse_list("batches", args.batches, count)
        for head in parse_list("heads", args.heads, str, known=CHAIN_HEADS)
        for changes in ({}, *({"mode": "csd", "gamma": gamma} for gamma in gammas))
    ]


def _check(session: Session, args: argparse.Namespace) -> None:
    cases = _cases(args)
    check_runs(session, *(case.options for case in cases))
    check_batch(session, max(case.batch for case in cases))


def _figures(session: Session, args: argparse.Namespace) -> Figures:
    cases, report = _cases(args), progress_report()
    classes = session.bundle.manifest.target.class_num
    for repeat in range(args.repeats):
        for place, case in enumerate(cases):
            report(
                f"[{repeat * len(cases) + place + 1}/{args.repeats * len(cases)}] batch "
                f"{case.batch}, {_name(case.options)}"
            )
            _run(session, case, balanced_labels(case.batch, classes), args, repeat)
    rows = [_row(case, cases) for case in cases]
    title = f"CSD at large batch ({args.clock} clock, least of {args.repeats})"
    return Figures([figures_table(title, COLUMNS, map(_shown, rows))], {"cases": rows})


def _run(
    session: Session, case: Case, labels: list[int], args: argparse.Namespace, repeat: int
) -> None:
    """Run a case once more and keep the quickest."""
    clock = CLOCKS[args.clock]
    began = clock()
    made = session.generate(labels, case.options, seed=args.seed + repeat)
    seconds = (clock() - began) / case.batch
    if seconds < case.seconds:
        case.seconds, case.stats = seconds, made.stats


def _name(options: GenerateOptions) -> str:
    gamma = f" gamma {options.gamma}" if options.mode == "csd" else ""
    return f"{options.mode}{gamma}, head {options.head}"


def _row(case: Case, cases: Sequence[Case]) -> dict[str, Any]:
    targets = {
        other.options.head: other.seconds
        for other in cases
        if other.batch == case.batch and other.options.mode == "target"
    }
    assert case.stats is not None
    whole = case.stats.seconds
    return {
        "batch": case.batch,
        "mode": case.options.mode,
        "head": case.options.head,
        "gamma": case.options.gamma if case.options.mode == "csd" else None,
        "seconds": case.seconds,
        "over_target": targets[case.options.head] / case.seconds,
        "over_best_target": min(targets.values()) / case.seconds,
        "acceptance_rate": case.stats.acceptance_rate,
        "shares": {part: seconds / whole for part, seconds in case.stats.parts.items()},
        "head_samplers": case.stats.to_dict()["head_samplers"],
    }


def _shown(row: dict[str, Any]) -> list[str]:
    rate = row["acceptance_rate"]
    return [
        str(row["batch"]), row["head"], "target" if row["gamma"] is None else str(row["gamma"]),
        f"{1e3 * row['seconds']:.1f}", f"{row['over_target']:.2f}x",
        f"{row['over_best_target']:.2f}x", "" if rate is None else f"{rate:.0%}",
        *(f"{share:.0%}" for share in row["shares"].values()),
    ]  # fmt: skip
