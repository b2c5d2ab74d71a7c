"""`csd-inspect`: what is in a bundle, and what differs between two."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import MANIFEST_FILE
from ...runtime.bundle.manifest_checks import PRECISIONS
from ...runtime.command.files import (
    check_outputs,
    is_stdout,
    output_path,
    write_json,
    write_outputs,
)
from ...runtime.command.parser import Parser, run_command
from ...runtime.command.text import plain, shown
from ...runtime.errors import BundleError, OptionError
from ..console import results_console
from ..option_values import add_json_report
from ..plot_files import check_plot
from .description import describe, graph_values
from .difference import compare
from .plot import plot_survival
from .tables import bundle_tables, difference_tables, graph_tables

if TYPE_CHECKING:
    from rich.table import Table

DIFFERENT = 1


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-inspect",
        description="What is in a bundle: models, schedule, graphs, engines, calibration, presets "
        "and files, as tables; one of its graphs; or what differs between two bundles (exit code "
        "0: nothing, 1: something, 2: an error).",
        example="csd-inspect bundle --graph target.head_step --layers",
    )
    parser.add_argument("bundle", type=Path, help="directory that csd-export wrote")
    what = parser.group("what is shown")
    what.add_argument(
        "--graph",
        metavar="NAME",
        help="one graph, as target.backbone: bindings, operators, weights (default: the bundle)",
    )
    what.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of --graph (default: the first that it has files in)",
    )
    what.add_argument("--layers", action="store_true", help="of --graph, every node too")
    what.add_argument(
        "--diff",
        type=Path,
        metavar="OTHER",
        help="what differs between the bundle and another one (default: no comparison)",
    )
    output = parser.group("output")
    output.add_argument(
        "--plot",
        type=output_path,
        metavar="FILE.png",
        help="also draw the survival of drafted transitions, as the calibration has it; .svg and "
        ".pdf too (default: not drawn)",
    )
    add_json_report(output, "it", "tables")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `csd-inspect`; returns the exit code (1: two bundles differ, 2: an error)."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Show what was asked for."""
    _check_arguments(args)
    inputs = {"the bundle": args.bundle}
    if args.diff is not None:
        inputs["the other bundle"] = args.diff
    check_outputs({"--json": args.json, "--plot": args.plot}, inputs)
    if args.plot is not None:
        check_plot(args.plot)
    bundle = _open(args.bundle)
    if args.diff is not None:
        other = _open(args.diff)
        with _pointing_to_doctor(args.bundle):
            first = describe(bundle)
        with _pointing_to_doctor(args.diff):
            values = compare(first, describe(other))
        _tell(args, values, difference_tables(values))
        if values["same"] and not is_stdout(args.json):
            results_console().print("the bundles hold the same")
        return 0 if values["same"] else DIFFERENT
    with _pointing_to_doctor(args.bundle):
        if args.graph is not None:
            precision = _precision(bundle, args.graph, args.precision)
            values = graph_values(bundle, args.graph, precision, layers=args.layers)
            _tell(args, values, graph_tables(values))
            return 0
        values = describe(bundle)
    if args.plot is not None and not (values["calibration"] or {}).get("survival"):
        raise OptionError(
            f"bundle {args.bundle} has no calibration to draw: leave --plot out, or export it with "
            "--calibration-tokens 4096"
        )
    _tell(args, values, bundle_tables(values))
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.graph is None:
        for name in ("layers", "precision"):
            if getattr(args, name):
                raise OptionError(f"--{name} is of a graph: give --graph NAME too")
        if args.diff is not None and args.plot is not None:
            raise OptionError("--plot draws one bundle: leave --plot or --diff out")
        return
    for name in ("diff", "plot"):
        if getattr(args, name) is not None:
            raise OptionError(f"--{name} is of a whole bundle: leave --{name} or --graph out")


def _open(path: Path) -> Bundle:
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        path.stat()  # a name that no file can have is told once, not in a command too
    with _pointing_to_doctor(path):
        return Bundle.open(path)


@contextmanager
def _pointing_to_doctor(path: Path) -> Generator[None]:
    """Name the command that looks at every file, where there is a bundle to look at.

    Raises:
        BundleError: as it was raised inside, with that command.
    """
    try:
        yield
    except BundleError as error:
        try:
            there = (path / MANIFEST_FILE).is_file()
        except (OSError, ValueError):
            there = False
        if not there:
            raise
        look = f"csd-doctor {path} checks every file"
        raise BundleError(f"{error}; {look}") from error


def _precision(bundle: Bundle, graph: str, wanted: str | None) -> str:
    """The precision in which a graph is shown: one that it has files in."""
    tables = bundle.manifest.tables
    if graph not in bundle.manifest.every_graph:
        known = ", ".join(bundle.manifest.every_graph)
        raise OptionError(
            f"bundle {bundle.path} has no graph {shown(graph)}: give one of {plain(known, 400)}"
        )
    there = [name for name, graphs in tables.items() if graph in graphs and graphs[graph].files]
    if not there:
        raise OptionError(
            f"bundle {bundle.path} has an engine of {graph} and no graph: look at the bundle that "
            "it was made from, or leave --graph out"
        )
    if wanted is None:
        return there[0]
    if wanted not in there:
        raise OptionError(
            f"bundle {bundle.path} has no {wanted} graph {graph}: give --precision "
            f"{' or '.join(there)}"
        )
    return wanted


def _tell(args: argparse.Namespace, values: dict[str, Any], tables: Iterable[Table]) -> None:
    """Write the files, those first that no reader can spoil by going away, and print the tables."""
    write_outputs((
        (args.json, lambda path: write_json(path, values)),
        (args.plot, lambda path: plot_survival(values["calibration"], path)),
    ))  # fmt: skip
    if is_stdout(args.json):
        return
    console = results_console(args.plot)
    for table in tables:
        console.print(table)
        console.print()
