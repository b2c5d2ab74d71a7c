"""`csd-export`: weights to a bundle, and engines for a bundle."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from ..runtime.bundle.manifest import Manifest
from ..runtime.bundle.signature import signature_warning
from ..runtime.command.line.logs import logger
from ..runtime.command.parser import make_console, run_command
from ..runtime.errors import ExportError
from ..runtime.libraries.imports import need
from .arguments import (
    CALIBRATION_TOKENS,
    EngineOptions,
    build_parser,
    check_arguments,
    check_effects,
    engine_options,
    one_backend,
    slims_a_bundle,
)
from .destination import check_destination
from .engines.rebuild import read_manifest, rebuild
from .engines.update import EngineRequest, default_precision
from .progress import Progress, Report, shown_progress
from .seal import SigningKey, seal, sign
from .slim import parse_for, slim_bundle

if TYPE_CHECKING:
    from rich.console import Console

    from .request import ExportRequest


_LOG = logger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `csd-export`; returns the exit code (1: a parity check failed, 2: an error)."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Export what was asked for, or build engines for a bundle."""
    console = make_console()
    report = functools.partial(console.print, soft_wrap=True)
    check_arguments(args)
    progress = shown_progress(console)
    # Keys and libraries are read before minutes of work.
    key = None if args.sign is None else SigningKey.read(args.sign)
    if args.seal is not None:
        seal(args.seal, key, report)
        return 0
    code = _make(args, console, report, progress)
    if key is not None:
        place = args.rebuild or args.out
        sign(place, key)
        report(f"{place} signed with {key.path}")
    return code


def _make(args: argparse.Namespace, console: Console, report: Report, progress: Progress) -> int:
    """Write the bundle or the engines that were asked for."""
    if slims_a_bundle(args):
        return _slim(args, report, progress)
    options = engine_options(args)
    _LOG.info(
        "precisions %s, engines of %s for %s", options.precisions or "of the bundle",
        options.backends or "no library", options.targets or "its default targets",
    )  # fmt: skip
    if args.rebuild is not None:
        precisions = options.precisions or (default_precision(read_manifest(args.rebuild)),)
        engines = EngineRequest.of(options.backends, options.targets, precisions)
        rebuild(args.rebuild, engines, options.profile, report, progress)
        report(f"engines written to {args.rebuild}")
        if args.sign is None and (warning := signature_warning(args.rebuild)):
            report(f"warning: {warning}")
        return 0
    engines = None
    if options.backends:
        engines = EngineRequest.of(options.backends, options.targets, options.precisions)
    _check_installed()
    check_destination(args.out, args.force)  # before weights are read
    from .writer import write_bundle

    bundle = write_bundle(
        _request(args, options, engines, report),
        args.out,
        force=args.force,
        report=report,
        progress=progress,
    )
    console.print(parity_table(bundle.manifest))
    report(f"bundle written to {args.out}")
    failed = [row.graph for row in bundle.manifest.parity if not row.passed]
    if failed:
        report(f"parity failed: {', '.join(failed)}")
    return 1 if failed else 0


def _slim(args: argparse.Namespace, report: Report, progress: Progress) -> int:
    """Write the slim form of a bundle."""
    wanted = parse_for(args.slim_for)
    backend = one_backend(args)
    check_destination(args.out, args.force)
    bundle = slim_bundle(
        args.slim, wanted, args.out, backend=backend, force=args.force, report=report,
        progress=progress,
    )  # fmt: skip
    files = [args.out / name for name in bundle.manifest.file_hashes]
    size = sum(path.stat().st_size for path in files) / 1e6
    report(f"slim bundle of {len(files)} files, {size:.1f} MB, written to {args.out}")
    return 0


def _check_installed() -> None:
    need("csd-export", "torch", "onnx", "onnx_ir", "onnxscript", kind=ExportError)


def _request(
    args: argparse.Namespace, options: EngineOptions, engines: EngineRequest | None, report: Report
) -> ExportRequest:
    from .request import ExportRequest
    from .sources import find_models

    found = find_models(args, report)
    calibration_tokens = args.calibration_tokens
    if calibration_tokens is None:  # a solver has no use for them
        calibration_tokens = 0 if found.models["target"].config.solved else CALIBRATION_TOKENS
        args.calibration_tokens = calibration_tokens
        check_effects(args)  # it is known now whether there are any
    return ExportRequest(
        name=found.name,
        target=found.models["target"],
        draft=found.models.get("draft"),
        decoder=found.decoder,
        head_steps=args.head_steps,
        max_batch=args.max_batch,
        max_gamma=args.max_gamma,
        class_names=found.class_names,
        sources=found.sources,
        calibration_tokens=calibration_tokens,
        row_cost=args.row_cost,
        precisions=tuple(name for name in options.precisions if name != "fp32"),
        head_chain=args.head_chain,
        local_steps=args.local_steps,
        operators=args.plugins,
        profile=options.profile,
        engines=engines,
        slim=args.slim is not None,
    )


def parity_table(manifest: Manifest) -> Table:
    """Return the parity report of a bundle as a table."""
    table = Table(title="largest difference to PyTorch", box=None, padding=(0, 1, 0, 0))
    for column in ("graph", "shapes", "absolute", "relative", "tolerance", ""):
        table.add_column(column, justify="left" if column == "graph" else "right", no_wrap=True)
    for row in manifest.parity:
        table.add_row(
            row.graph, str(row.shapes), f"{row.max_abs:.1e}", f"{row.max_rel:.1e}",
            f"{row.tolerance:.0e}", "pass" if row.passed else "FAIL",
        )  # fmt: skip
    return table
