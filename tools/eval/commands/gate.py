"""`csd-eval gate`: is a candidate worse than a baseline, as an exit code."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ....runtime.command.files import check_outputs, write_json
from ....runtime.command.parser import Parser, run_command
from ....runtime.command.text import one_line
from ....runtime.images import load_pillow
from ...console import results_console
from ..compare import compare
from ..images.real import find_real
from ..judge import LEAD, METRICS
from ..options import (
    add_compared_arguments,
    add_database_argument,
    add_json_argument,
    add_quiet_argument,
    check_compared,
    need_features,
    progress_of,
    run_name,
    share,
)
from ..store.database import check_database, open_database
from ..store.runs import need_run
from ..verdicts import Drop, drop_of

NOT_WORSE, WORSE, TOO_FEW = 0, 1, 3
_SAID = {
    NOT_WORSE: "not worse by more than that",
    WORSE: "WORSE by more than that",
    TOO_FEW: "too few images to tell",
}


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-eval gate",
        description="Hold a candidate against a baseline: exit code 0 where it is not worse by "
        "more than a margin, 1 where it is worse beyond the interval, 3 where there are too few "
        "images to tell (2 is an error, as everywhere). With several feature spaces it must hold "
        "in each. The margin of the kernel distance is a share of the distance of a model that "
        "makes one real image again and again, that of any other figure a share of the baseline's.",
        example="csd-eval gate --baseline v1 --candidate v2 --max-drop 2%",
        lower="--use",
    )
    what = parser.group("what is compared")
    what.add_argument("--baseline", type=run_name, required=True, metavar="RUN", help="a run")
    what.add_argument("--candidate", type=run_name, required=True, metavar="RUN", help="a run")
    what.add_argument(
        "--max-drop", type=share, default="2%", metavar="SHARE", help="margin, as 2%% or 0.02"
    )
    what.add_argument("--metric", choices=tuple(METRICS), default=LEAD, help="the figure")
    add_compared_arguments(what)
    output = parser.group("output")
    add_database_argument(output)
    add_json_argument(output)
    add_quiet_argument(output)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Hold the candidate against the baseline."""
    check_outputs({"--json": args.json}, {"the database": args.db})
    check_compared(args)
    check_database(args.db)
    load_pillow()
    metric = METRICS[args.metric]
    with open_database(args.db) as connection:
        runs = [need_run(connection, name) for name in (args.baseline, args.candidate)]
        zoo = runs[0].about.get("zoo")
        real = find_real(args.real, zoo)
        spaces = need_features(args.features, zoo, args.threads)
        with progress_of(args.quiet)("gate") as step:
            comparison = compare(
                connection, runs, [], spaces, real, most=args.use, real_count=args.real_images,
                names=[metric.name], tests=False, step=step,
            )  # fmt: skip
    drops: dict[str, Drop] = {}
    for features in spaces:
        title = features.space.title
        baseline, candidate = (
            row.spaces[title].figures.need(metric.name) for row in comparison.rows
        )
        scale = 1.0 if metric.name == LEAD else abs(baseline.value)
        difference = candidate.minus(baseline)
        drops[title] = drop_of(metric, difference, args.max_drop * scale, comparison.count)
    code = gate_code([drop.holds for drop in drops.values()])
    if args.json is not None:
        write_json(args.json, {
            "baseline": args.baseline, "candidate": args.candidate, "metric": metric.name,
            "images": comparison.count, "exit_code": code,
            "spaces": {title: _values(drop) for title, drop in drops.items()},
        })  # fmt: skip
    console = results_console(args.json)
    for title, drop in drops.items():
        low, high = (metric.shown(v, signed=True) for v in (drop.low, drop.high))
        verdict = gate_code([drop.holds])
        needed = f", about {drop.needed} are enough" if verdict == TOO_FEW else ""
        console.print(one_line(
            f"{title}: {args.candidate} is {metric.shown(drop.drop, signed=True)} worse in "
            f"{metric.title} than {args.baseline}, [{low}, {high}], margin "
            f"{metric.shown(drop.margin)}, n = {comparison.count}: {_SAID[verdict]}{needed}"
        ), soft_wrap=True)  # fmt: skip
    return code


def gate_code(holds: Sequence[bool | None]) -> int:
    """The exit code of what was found in each space."""
    if False in holds:
        return WORSE
    return TOO_FEW if None in holds else NOT_WORSE


def _values(drop: Drop) -> dict[str, float | bool | None]:
    return {
        "drop": drop.drop, "low": drop.low, "high": drop.high, "margin": drop.margin,
        "holds": drop.holds, "images_needed": drop.needed,
    }  # fmt: skip
