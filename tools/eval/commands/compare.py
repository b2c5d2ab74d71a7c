"""`csd-eval compare`: runs beside each other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ....runtime.command.files import check_outputs, is_stream, output_path, write_json
from ....runtime.command.line.effects import Effect, refuse_without_effect
from ....runtime.command.parser import Parser, run_command
from ....runtime.errors import OptionError
from ....runtime.images import load_pillow
from ...console import results_console
from ...option_values import whole_number_reader
from ..compare import check_together, compare, fewer_steps
from ..images.real import find_real
from ..options import (
    add_compared_arguments,
    add_database_argument,
    add_json_argument,
    add_quiet_argument,
    check_compared,
    need_features,
    progress_of,
    run_name,
)
from ..report.html import write_page
from ..report.mlflow_export import check_mlflow, export
from ..report.values import comparison_values, tables
from ..store.database import check_database, open_database
from ..store.runs import all_runs, need_run

MOST_RUNS = 64
_PAGE: tuple[Effect[argparse.Namespace], ...] = (
    Effect(
        ("show",), lambda args: args.html is not None,
        "images are shown in the page alone", "give --html FILE",
    ),
)  # fmt: skip


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-eval compare",
        description="Compare runs with the first of them: distances to real images in one or more "
        "feature spaces with intervals, verdicts, two-sample tests, pairs of one seed, and speed. "
        "Runs of the target at fewer steps that are in the database are always put beside them.",
        example="csd-eval compare target csd-8 draft --html report.html",
        lower="--use",
    )
    parser.add_argument("runs", nargs="+", type=run_name, metavar="RUN", help="names of runs")
    what = parser.group("what is compared")
    add_compared_arguments(what)
    output = parser.group("output")
    add_database_argument(output)
    output.add_argument(
        "--html",
        type=output_path,
        metavar="FILE",
        help="also write one page with plots and images (default: none)",
    )
    output.add_argument(
        "--show",
        type=whole_number_reader(0, 1000),
        default=20,
        help="images of each run in the page",
    )
    add_json_argument(output)
    add_quiet_argument(output)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Compare what was asked for."""
    if not 2 <= len(args.runs) <= MOST_RUNS:
        raise OptionError(f"{len(args.runs)} runs are named: give 2 to {MOST_RUNS}")
    inputs: dict[str, Path] = {"the database": args.db}
    check_outputs({"--html": args.html, "--json": args.json}, inputs)
    check_compared(args)
    refuse_without_effect(args.given, _PAGE, [args])
    check_database(args.db)
    load_pillow()
    in_mlflow = check_mlflow()
    with open_database(args.db) as connection:
        runs = [need_run(connection, name) for name in args.runs]
        check_together(runs)
        every = all_runs(connection)
        beside = fewer_steps(connection, runs, every, args.use)[:MOST_RUNS]
        zoo = runs[0].about.get("zoo")
        real = find_real(args.real, zoo)
        spaces = need_features(args.features, zoo, args.threads)
        with progress_of(args.quiet)("compare") as step:
            comparison = compare(
                connection, runs, beside, spaces, real, most=args.use,
                real_count=args.real_images, step=step,
            )  # fmt: skip
        if args.html is not None:
            write_page(args.html, comparison, connection, args.show)
    if args.json is not None:
        write_json(args.json, comparison_values(comparison))
    console = results_console(args.json, args.html)
    for table in tables(comparison):
        console.print(table)
    for note in comparison.notes:
        console.print(f"note: {note}", soft_wrap=True)
    if in_mlflow:
        export(comparison, None if args.html is None or is_stream(args.html) else args.html)
    return 0
