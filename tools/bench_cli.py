"""`csd-bench`: how fast is each mode, and what does it cost in quality?"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..runtime.bundle import Bundle
from ..runtime.cli import add_decoding_arguments, decoding_options, open_session
from ..runtime.cli_support import Parser, parse_list, run_command
from ..runtime.errors import CsdError, OptionError
from ..runtime.files import check_writable, write_json
from ..runtime.options import HEADS
from .bench import (
    BASELINES,
    EVENTS,
    WALL_CLOCK,
    Sweep,
    bundle_classifier,
    by_clock,
    eager_samplers,
    figures,
    make_cases,
    measure,
    measure_quality,
)
from .machine import describe_machine, gpu_state

MODES = (*BASELINES, "target", "draft", "csd")
DEFAULT_MODES = "eager,target,csd"
DEFAULT_GAMMAS = "4,8,16,32"


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-bench",
        description="Compare decoding modes with PyTorch eager: interleaved, warmed up, medians "
        "and percentiles, ratios. Also times the target at fewer AR steps, because that is what "
        "a faster mode has to beat.",
        example="csd-bench bundle --modes eager,target,csd --gammas 8 --json bench.json",
    )
    parser.add_argument("bundle", type=Path, help="directory that csd-export wrote")
    parser.add_argument("--modes", default=DEFAULT_MODES, help=f"of {', '.join(MODES)}")
    parser.add_argument(
        "--heads", default="sequential", help=f"head samplers to compare, of {', '.join(HEADS)}"
    )
    parser.add_argument("--gammas", default=DEFAULT_GAMMAS, help="gamma values of csd")
    parser.add_argument(
        "--temperatures",
        default="",
        help="inner temperatures to sweep at the first gamma, as in 1,8,42",
    )
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each mode")
    parser.add_argument("--warm-ups", type=int, default=1, help="runs before those that are timed")
    parser.add_argument(
        "--fewer-steps",
        default="64,32,16,8",
        help="AR steps at which the target is measured too, where they are fewer; 0 = none",
    )
    parser.add_argument(
        "--quality-images",
        type=int,
        default=0,
        help="images behind the class accuracy of each mode, 0 = not measured",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run")
    parser.add_argument(
        "--target-weights",
        type=Path,
        help="weights for eager (default: where the bundle was exported from)",
    )
    parser.add_argument(
        "--eager-device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="of PyTorch; auto is where the backend runs",
    )
    add_decoding_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also save the results")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw them")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `csd-bench`; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Measure what was asked for."""
    console = Console(highlight=False)
    sweep = _sweep(args)
    for path in (args.json, args.plot):
        if path is not None:
            check_writable(path)
    bundle = Bundle.open(args.bundle)
    if args.gammas == DEFAULT_GAMMAS:
        fitting = [gamma for gamma in sweep.gammas if gamma <= bundle.manifest.max_gamma]
        sweep = dataclasses.replace(sweep, gammas=fitting or [1])
    if "draft" not in bundle.manifest.models and args.modes == DEFAULT_MODES:
        sweep = dataclasses.replace(sweep, modes=[mode for mode in sweep.modes if mode != "csd"])
    report = _measure(args, bundle, sweep, console)
    console.print(results_table(report))
    if args.json is not None:
        write_json(args.json, report)
    if args.plot is not None:
        from .plots import plot_bench

        plot_bench(report, args.plot)
    return 0


def _sweep(args: argparse.Namespace) -> Sweep:
    """Read and check what is varied, and how often."""
    sweep = Sweep(
        modes=parse_list("modes", args.modes, str),
        heads=parse_list("heads", args.heads, str),
        gammas=parse_list("gammas", args.gammas, int),
        temperatures=(
            parse_list("temperatures", args.temperatures, float) if args.temperatures else []
        ),
        fewer_steps=[steps for steps in parse_list("fewer-steps", args.fewer_steps, int) if steps],
    )
    for name, values, known in (("mode", sweep.modes, MODES), ("head", sweep.heads, HEADS)):
        unknown = [value for value in values if value not in known]
        if unknown:
            raise OptionError(f"{name} is {unknown[0]!r}: give some of {', '.join(known)}")
    if min(sweep.fewer_steps, default=1) < 1:
        raise OptionError(f"fewer-steps is {args.fewer_steps!r}: give numbers of AR steps, or 0")
    for name, least in (("batch", 1), ("repeats", 1), ("warm_ups", 0), ("quality_images", 0)):
        value = getattr(args, name)
        if value < least:
            raise OptionError(f"{name.replace('_', '-')} is {value}: give at least {least}")
    return sweep


def _measure(
    args: argparse.Namespace,
    bundle: Bundle,
    sweep: Sweep,
    console: Console,
) -> dict[str, Any]:
    options = decoding_options(args)
    resolved = options.resolved(bundle.manifest.target, bundle.manifest.head_steps)
    baselines = [name for name in BASELINES if name in sweep.modes]
    if baselines and not isinstance(resolved.head_steps, int):
        name = baselines[0]
        raise OptionError(f"{name} has no annealed head steps: leave {name} out of --modes")
    assert resolved.num_iter is not None
    cases = make_cases(sweep, resolved, resolved.num_iter)
    with open_session(bundle, args) as session:
        device = args.eager_device
        if device == "auto":
            device = "cpu" if session.backend.name == "onnxruntime" else "cuda"
        eager = eager_samplers(bundle, baselines, args.target_weights, args.threads, device)
        for case in cases:  # before minutes of work
            if not case.baseline:
                session.check([0], case.options)
        before = gpu_state()
        results = measure(
            session, eager, cases,
            batch=args.batch, repeats=args.repeats, warm_ups=args.warm_ups, seed=args.seed,
            report=console.print,
        )  # fmt: skip
        after = gpu_state()
        backend = {"name": session.backend.name, **session.versions()}
        if args.quality_images:
            classifier = bundle_classifier(bundle, args.threads)
            if classifier is None:
                raise CsdError("class accuracy needs a zoo bundle: leave out --quality-images")
            measure_quality(
                session, classifier, results,
                images=args.quality_images, seed=args.seed, report=console.print,
            )  # fmt: skip
    return {
        "bundle": bundle.manifest.name,
        "batch": args.batch,
        "repeats": args.repeats,
        "warm_ups": args.warm_ups,
        "threads": args.threads,
        "machine": describe_machine(),
        "backend": backend,
        "eager_device": device,
        "gpu_before": before,
        "gpu_after": after,
        **figures(results, args.batch),
    }


_CAPTIONS = {
    EVENTS: "s / image and x eager by CUDA events before and after each run",
    WALL_CLOCK: "s / image and x eager by the wall clock, to the end of each run's last wait",
}


def results_table(report: dict[str, Any]) -> Table:
    """Return the results as a table, whose caption says which clock its figures are of."""
    batch, clock = report["batch"], report["clock"]
    other, name = (WALL_CLOCK, "wall s") if clock == EVENTS else (EVENTS, "device s")
    both = any(row["device_seconds"] for row in report["results"])
    beside = [f"{name} / image"] if both else []
    table = Table(
        title=f"{report['bundle']}, batch {batch}, {report['threads']} threads",
        caption=_CAPTIONS[clock],
    )
    table.add_column("mode", no_wrap=True)
    for column in ("s / image", "10-90 %", *beside, "x eager", "acceptance", "class accuracy"):
        table.add_column(column, justify="right")
    for row in report["results"]:
        low, high = by_clock(row, "seconds_percentiles_10_90", clock)
        second = by_clock(row, "seconds_per_image", other)
        speed_up, rate, accuracy = (
            row[key] for key in ("speed_up_over_eager", "acceptance_rate", "accuracy")
        )
        table.add_row(
            row["name"],
            f"{by_clock(row, 'seconds_per_image', clock):.3f}",
            f"{low / batch:.3f}-{high / batch:.3f}",
            *(["" if second is None else f"{second:.3f}"] if both else []),
            "" if speed_up is None else f"{speed_up:.2f}",
            "" if rate is None else f"{rate:.1%}",
            "" if accuracy is None else f"{accuracy:.1%} of {row['accuracy_images']}",
        )
    return table
