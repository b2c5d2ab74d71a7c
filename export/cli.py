"""`csd-export`: weights to a bundle."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..runtime.cli_support import Parser, run_command
from ..runtime.config import PRESETS, MARConfig
from ..runtime.errors import ExportError
from ..runtime.head.draft import ROW_COST
from ..runtime.manifest import Manifest, Source, file_sha256

if TYPE_CHECKING:
    from .writer import ExportRequest


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-export",
        description="Export a target and a draft model to a bundle that the torch-free runtime "
        "reads, and check every graph against PyTorch.",
        example="csd-export --zoo fashion-mnist --out bundle",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the bundle")
    parser.add_argument("--zoo", help="a shipped pair: fashion-mnist")
    configs = f"JSON file or {', '.join(PRESETS)}"
    for role in ("target", "draft"):
        parser.add_argument(
            f"--{role}", type=Path, help=f"weights of the {role} (.pth, .safetensors)"
        )
        parser.add_argument(
            f"--{role}-config", help=f"configuration of the {role}: {configs}"
        )  # fmt: skip
    parser.add_argument("--decoder", type=Path, help="weights of the KL decoder (kl16.ckpt)")
    parser.add_argument("--head-steps", type=int, help="default number of head steps "
                        "(default: the target's num_sampling_steps)")  # fmt: skip
    parser.add_argument("--max-batch", type=int, default=8, help="images in one call at most")
    parser.add_argument("--max-gamma", type=int, default=32, help="AR steps drafted at most")
    parser.add_argument(
        "--calibration-tokens",
        type=int,
        default=2048,
        help="tokens that the fast head samplers are fitted on, 0 = none",
    )
    parser.add_argument(
        "--row-cost",
        type=float,
        default=ROW_COST,
        help="what a row of the head costs in units of a call where the bundle will run: the "
        "speculative head's windows follow from it (less on a GPU)",
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `csd-export`; returns the exit code (1: a parity check failed, 2: an error)."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Export what was asked for."""
    console = Console(highlight=False)
    _check_arguments(args)
    try:
        from .writer import check_destination, write_bundle

        for needed in ("onnx", "onnxscript"):  # torch imports them when it exports
            importlib.import_module(needed)
    except ImportError as error:
        raise ExportError(
            f"csd-export needs {error.name}: pip install 'csd[export,cpu]'"
        ) from error
    check_destination(args.out, args.force)  # before minutes of work
    request = _request(args)
    bundle = write_bundle(request, args.out, force=args.force, report=console.print)
    console.print(parity_table(bundle.manifest))
    console.print(f"bundle written to {args.out}")
    failed = [row.graph for row in bundle.manifest.parity if not row.passed]
    if failed:
        console.print(f"parity failed: {', '.join(failed)}")
    return 1 if failed else 0


def _check_arguments(args: argparse.Namespace) -> None:
    if bool(args.zoo) == bool(args.target):
        raise ExportError("give either --zoo NAME or --target FILE with --target-config")
    own = ("target_config", "draft", "draft_config", "decoder")
    extra = next((name for name in own if getattr(args, name)), None)
    if args.zoo and extra:
        raise ExportError(f"--{extra.replace('_', '-')} does not go with --zoo: leave it out")
    for role in ("target", "draft"):
        weights, config = getattr(args, role), getattr(args, f"{role}_config")
        if bool(weights) != bool(config):
            raise ExportError(f"--{role} and --{role}-config go together: give both")


def _request(args: argparse.Namespace) -> ExportRequest:
    from ..models import load_mar
    from ..models.kl_decoder import load_kl_decoder
    from ..models.zoo import zoo_entry
    from .writer import ExportRequest

    sources: dict[str, Source] = {}
    if args.zoo:
        entry = zoo_entry(args.zoo)
        name, class_names = entry.name, entry.class_names
        files = {role: (entry.weights(role), entry.config(role)) for role in ("target", "draft")}
        for role, (path, _) in files.items():
            sources[role] = Source(f"zoo:{args.zoo}", file_sha256(path))
    else:
        name, class_names = args.target.stem, None
        files = {"target": (args.target, MARConfig.load(args.target_config))}
        if args.draft:
            files["draft"] = (args.draft, MARConfig.load(args.draft_config))
    models = {role: load_mar(path, config) for role, (path, config) in files.items()}
    for role, (path, _) in files.items():
        sources.setdefault(role, Source(str(path.resolve()), file_sha256(path)))
    decoder = None
    if args.decoder:
        decoder = load_kl_decoder(args.decoder)
        sources["decoder"] = Source(str(args.decoder.resolve()), file_sha256(args.decoder))
    return ExportRequest(
        name=name,
        target=models["target"],
        draft=models.get("draft"),
        decoder=decoder,
        head_steps=(
            models["target"].config.num_sampling_steps
            if args.head_steps is None
            else args.head_steps
        ),
        max_batch=args.max_batch,
        max_gamma=args.max_gamma,
        class_names=class_names,
        sources=sources,
        calibration_tokens=args.calibration_tokens,
        row_cost=args.row_cost,
    )


def parity_table(manifest: Manifest) -> Table:
    """Return the parity report of a bundle as a table."""
    table = Table(title="largest difference to PyTorch")
    for column in ("graph", "shapes", "absolute", "relative", "tolerance", ""):
        table.add_column(column, justify="left" if column == "graph" else "right")
    for row in manifest.parity:
        table.add_row(
            row.graph, str(row.shapes), f"{row.max_abs:.1e}", f"{row.max_rel:.1e}",
            f"{row.tolerance:.0e}", "pass" if row.passed else "FAIL",
        )  # fmt: skip
    return table
