"""`csd-eval history`: one figure over bundles and versions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ....runtime.command.files import check_outputs, output_path, write_json
from ....runtime.command.parser import Parser, run_command
from ....runtime.errors import OptionError
from ....runtime.images import load_pillow
from ...console import results_console
from ...plot_files import check_plot
from ..compare import Comparison, compare
from ..images.real import find_real
from ..judge import LEAD, METRICS
from ..metrics.halves import Estimate
from ..options import (
    add_compared_arguments,
    add_database_argument,
    add_json_argument,
    add_quiet_argument,
    check_compared,
    need_features,
    progress_of,
)
from ..report.history_plot import plot_history
from ..report.values import shown_value
from ..store.database import check_database, open_database
from ..store.runs import Run, all_runs, numbers_of


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-eval history",
        description="One figure of the runs of a database in the order in which they were begun, "
        "with bundle and versions. Every run is measured on its own images, as many as it has.",
        example="csd-eval history --metric accuracy --plot history.png",
        lower="--use",
    )
    what = parser.group("what is shown")
    what.add_argument("--metric", choices=tuple(METRICS), default=LEAD, help="the figure")
    what.add_argument("--like", default="", metavar="TEXT", help="runs with that in their name")
    add_compared_arguments(what)
    output = parser.group("output")
    add_database_argument(output)
    output.add_argument(
        "--plot",
        type=output_path,
        metavar="FILE.png",
        help="also draw it; .svg and .pdf too (default: not drawn)",
    )
    add_json_argument(output)
    add_quiet_argument(output)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Measure every run and show them in order."""
    outputs = {"--plot": args.plot, "--json": args.json}
    check_outputs(outputs, {"the database": args.db})
    check_compared(args)
    check_database(args.db)
    if args.plot is not None:
        check_plot(args.plot)
    load_pillow()
    metric, found = METRICS[args.metric], list[tuple[Run, Comparison]]()
    with open_database(args.db) as connection:
        runs = [run for run in all_runs(connection) if args.like in run.name]
        runs = [run for run in runs if numbers_of(connection, run)]
        if not runs:
            raise OptionError(
                f"no run with images has {args.like!r} in its name: make one with csd-eval run"
            )
        held_against = {
            zoo: (find_real(args.real, zoo), need_features(args.features, zoo, args.threads)[:1])
            for zoo in {each.about.get("zoo") for each in runs}
        }
        for each in runs:
            real, spaces = held_against[each.about.get("zoo")]
            with progress_of(args.quiet)(each.name) as step:
                found.append((each, compare(
                    connection, [each], [], spaces, real, most=args.use,
                    real_count=args.real_images, names=[metric.name], tests=False, step=step,
                )))  # fmt: skip
    estimates = [c.rows[0].spaces[c.lead].figures.need(metric.name) for _, c in found]
    if args.plot is not None:
        names = [run.name for run, _ in found]
        plot_history(args.plot, metric, names, estimates)
    if args.json is not None:
        rows = zip(found, estimates, strict=True)
        write_json(args.json, {"metric": metric.name,
                               "runs": [_values(r, c, e) for (r, c), e in rows]})  # fmt: skip
    table = Table(title=f"{metric.title}: {metric.about}")
    for column in ("run", "begun", "bundle", "csd", "mode", "n", metric.title, "s / image"):
        table.add_column(column, no_wrap=True)
    for each, comparison in found:
        figures = comparison.rows[0].spaces[comparison.lead].figures
        settings = each.settings
        table.add_row(
            each.name, each.created[:16], f"{settings.bundle} {settings.content_sha256[:8]}",
            settings.versions.get("csd", ""), str(settings.options["mode"]),
            str(comparison.count), shown_value(figures, metric.name),
            f"{comparison.rows[0].seconds:.3f}",
        )  # fmt: skip
    results_console(args.plot, args.json).print(table)
    return 0


def _values(run: Run, comparison: Comparison, estimate: Estimate) -> dict[str, Any]:
    settings = run.settings
    return {
        "name": run.name, "created": run.created, "bundle": settings.bundle,
        "content_sha256": settings.content_sha256, "versions": settings.versions,
        "options": settings.options, "images": comparison.count, "space": comparison.lead,
        "value": estimate.value, "interval": list(estimate.interval()),
        "seconds_per_image": comparison.rows[0].seconds,
    }  # fmt: skip
