"""What the scripts behind the figures share, so that each is its measurement and nothing else.

The frame parses, refuses what cannot be done before anything is measured, opens the bundle, notes
machine and load, saves the figures and prints the tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ...runtime.cli import add_verify_argument, open_bundle
from ...runtime.command.files import check_outputs, output_path, write_json
from ...runtime.command.parser import Parser, run_command
from ...runtime.errors import OptionError
from ...runtime.head import native
from ...runtime.options import GenerateOptions
from ...runtime.session import Session
from ..console import progress_report, results_console
from ..load import LoadMeter, busy_warning, cores, idle_load, load_caption, load_report
from ..machine import describe_machine
from ..option_values import GUIDANCE, SEED, THREADS


@dataclass(frozen=True)
class Figures:
    """What a script measured.

    Attributes:
        tables: to show.
        values: to save, as JSON values.
    """

    tables: Sequence[Table]
    values: Mapping[str, Any]


# Measures with a session, given the arguments.
Measure = Callable[[Session, argparse.Namespace], Figures]
# Refuses what cannot be done, before anything is.
Check = Callable[[Session, argparse.Namespace], None]


def measuring_parser(
    script: str, description: str, example: str, *, scale: bool = True, seed: bool = True
) -> Parser:
    """Return a parser with the arguments that the scripts share.

    Args:
        script: name of the module.
        description: what it measures.
        example: arguments after the bundle.
        scale: whether it takes one guidance scale.
        seed: whether it takes a seed.
    """
    prog = f"python -m csd.tools.measure.{script}"
    parser = Parser(prog=prog, description=description, example=f"{prog} bundle {example}")
    parser.add_argument("bundle", type=Path, help="directory that csd-export wrote")
    if scale:
        parser.add_argument("--cfg", type=GUIDANCE, default=1.0, help="guidance scale, 1 = none")
    if seed:
        parser.add_argument("--seed", type=SEED, default=0, help="of images, contexts and noise")
    parser.add_argument("--threads", type=THREADS, default=2, help="CPU threads")
    add_verify_argument(parser)
    parser.add_argument(
        "--json",
        type=output_path,
        metavar="FILE",
        help="save the figures, - for stdout (default: not saved)",
    )
    return parser


def run_script(
    parser: Parser,
    argv: Sequence[str] | None,
    *,
    check: Check,
    measure: Measure,
    outputs: Callable[[argparse.Namespace], Mapping[str, Path | None]] = lambda _: {},
    backend: str = "auto",
) -> int:
    """Run a script from its command line to its exit code.

    Args:
        parser: of `measuring_parser`, and what the script added.
        argv: the command line, or None for the process's.
        check: refuses what cannot be done.
        measure: the measurement.
        outputs: files that the script writes itself, by option.
        backend: what runs the bundle.
    """

    def run(args: argparse.Namespace) -> int:
        check_outputs({"--json": args.json, **outputs(args)}, {"the bundle": args.bundle})
        bundle, idle = open_bundle(args), idle_load()
        with bundle.session(backend, args.threads) as session:
            session.keep_backend()
            check(session, args)
            if warning := busy_warning(idle, None, args.threads, cores()):
                progress_report()(f"warning: {warning}")
            meter = LoadMeter()
            figures = measure(session, args)
            load = load_report(idle, meter.read(), args.threads)
            backend_used = {"name": session.backend.name, **session.versions()}
        # Before the tables: whoever reads those may be gone.
        if args.json is not None:
            values = {
                "bundle": bundle.identity(),
                "options": _options(args),
                "threads": args.threads,
                "host_library": native.available(),
                "machine": describe_machine(),
                "backend": backend_used,
                "load": load,
                **figures.values,
            }
            write_json(args.json, values)
        console = results_console(args.json)
        for table in figures.tables:
            console.print(table)
        console.print(load_caption(load), soft_wrap=True)
        return 0

    return run_command(run, parser, argv)


# How the command line was read, and what says nothing of the figures.
_NOT_SAVED = ("json", "given", "log_level", "require_signature")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, but for where things lie."""
    return {
        name: value
        for name, value in vars(args).items()
        if not isinstance(value, Path) and name not in _NOT_SAVED
    }


def check_runs(session: Session, *wanted: GenerateOptions) -> None:
    """Check that a session can run with options.

    Raises:
        OptionError: it cannot.
    """
    manifest = session.bundle.manifest
    for options in wanted:
        session.check([0], options.resolved(manifest.target, manifest.head_steps))


def check_batch(session: Session, images: int) -> None:
    """Check that a session decodes so many images at once.

    Raises:
        OptionError: its bundle takes fewer.
    """
    most = session.bundle.manifest.max_batch
    if images > most:
        raise OptionError(
            f"batch {images} is not decoded at once: this bundle takes {most}; export with "
            f"--max-batch {images}"
        )


def check_zoo(session: Session, zoo: str, options: str = "") -> None:
    """Check that a session's bundle is of a shipped pair.

    Args:
        session: of the bundle.
        zoo: name of the pair.
        options: of `csd-export`, beside `--zoo`, for the message.

    Raises:
        OptionError: it is of other models.
    """
    bundle = session.bundle
    if bundle.manifest.zoo != zoo:
        raise OptionError(
            f"bundle {bundle.path} is not of the shipped pair: make one with csd-export --zoo "
            f"{zoo}{options}"
        )


def figures_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table whose first column is text and whose others are figures."""
    table = Table(title=title)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
