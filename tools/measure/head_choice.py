"""Whether `--head auto` chooses well: `python -m csd.tools.measure.head_choice --help`.

For each mode, number of AR steps, guidance scale, batch and gamma, the time of an image with every
explicit head and with `auto`. Heads take turns, and the least of the repeats counts, so that what
else the machine does falls on all of them alike. `--clock cpu` counts the process's own processor
time, which other work disturbs little; on a device use the wall clock.
"""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...runtime.command.parser import Parser, parse_list
from ...runtime.options import CHAIN_HEADS, MODES, GenerateOptions
from ...runtime.session import Session
from ..console import progress_report
from ..option_values import COUNT, GUIDANCE, whole_number_reader
from ..quality import balanced_labels
from .clock import CLOCKS, add_clock_argument
from .frame import Figures, check_runs, figures_table, measuring_parser, run_script

AUTO = "auto"
EXPLICIT = tuple(head for head in CHAIN_HEADS if head != AUTO)
COLUMNS = ("mode", "AR steps", "cfg", "batch", "gamma", *EXPLICIT, AUTO, "auto / best", "auto took")


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = measuring_parser(
        "head_choice",
        "Milliseconds an image of every head sampler beside those of --head auto, over batches, "
        "guidance and drafted AR steps: how much slower auto is than the best explicit choice.",
        "--threads 1 --clock cpu --json choice.json",
        scale=False,
    )
    parser.add_argument("--modes", default="target,csd", help=f"some of {', '.join(MODES)}")
    parser.add_argument("--num-iters", default="49,16", help="AR steps")
    parser.add_argument("--scales", default="1,3", help="guidance scales")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64", help="images of a run")
    parser.add_argument("--gammas", default="4,8,16,32", help="drafted AR steps, of mode csd")
    parser.add_argument("--repeats", type=COUNT, default=3, help="runs of each, of which the least")
    add_clock_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all cases; returns the exit code."""
    return run_script(build_parser(), argv, check=_check, measure=_figures)


def _cases(args: argparse.Namespace) -> Iterator[tuple[int, GenerateOptions]]:
    """Images at once and options of each case, with head `auto`."""
    count = whole_number_reader(1, 1_000_000)
    modes = parse_list("modes", args.modes, str, known=MODES)
    gammas = parse_list("gammas", args.gammas, count)
    for mode in modes:
        for num_iter in parse_list("num-iters", args.num_iters, count):
            for cfg in parse_list("scales", args.scales, GUIDANCE):
                for batch in parse_list("batches", args.batches, count):
                    for gamma in gammas if mode == "csd" else gammas[:1]:
                        yield (
                            batch,
                            GenerateOptions(
                                mode=mode, num_iter=num_iter, cfg=cfg, gamma=gamma, head=AUTO
                            ),
                        )


def _check(session: Session, args: argparse.Namespace) -> None:
    check_runs(session, *(options for _, options in _cases(args)))


def _figures(session: Session, args: argparse.Namespace) -> Figures:
    cases, report = list(_cases(args)), progress_report()
    rows: list[dict[str, Any]] = []
    for place, (batch, options) in enumerate(cases):
        report(
            f"[{place + 1}/{len(cases)}] {options.mode}, {options.num_iter} AR steps, guidance "
            f"{options.cfg:g}, batch {batch}, gamma {options.gamma}"
        )
        rows.append(_measured(session, batch, options, args))
    worst = max(row["auto_over_best"] for row in rows)
    table = figures_table(
        f"ms an image ({args.clock} clock, least of {args.repeats}); auto is at most "
        f"{worst - 1:.1%} slower than the best",
        COLUMNS,
        (_shown(row) for row in rows),
    )
    return Figures([table], {"worst_auto_over_best": worst, "cases": rows})


def _measured(
    session: Session, batch: int, options: GenerateOptions, args: argparse.Namespace
) -> dict[str, Any]:
    """Seconds an image of all heads in one case."""
    labels = balanced_labels(batch, session.bundle.manifest.target.class_num)
    clock, best = CLOCKS[args.clock], dict.fromkeys((*EXPLICIT, AUTO), float("inf"))
    took: dict[str, dict[str, int]] = {}
    for repeat in range(args.repeats):
        for head in best:
            began = clock()
            made = session.generate(labels, replace(options, head=head), seed=args.seed + repeat)
            best[head] = min(best[head], (clock() - began) / batch)
            if head == AUTO:
                took = made.stats.to_dict()["head_samplers"]
    return {
        "mode": options.mode, "num_iter": options.num_iter, "cfg": options.cfg, "batch": batch,
        "gamma": options.gamma if options.mode == "csd" else None, "seconds": best,
        "auto_over_best": best[AUTO] / min(best[head] for head in EXPLICIT), "auto_took": took,
    }  # fmt: skip


def _shown(row: dict[str, Any]) -> list[str]:
    took = ", ".join(
        f"{model}: {'+'.join(sorted(kinds))}" for model, kinds in row["auto_took"].items()
    )
    return [
        row["mode"], str(row["num_iter"]), f"{row['cfg']:g}", str(row["batch"]),
        "" if row["gamma"] is None else str(row["gamma"]),
        *(f"{1e3 * seconds:.1f}" for seconds in row["seconds"].values()),
        f"{row['auto_over_best']:.3f}", took,
    ]  # fmt: skip
