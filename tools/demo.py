"""`make demo`: from shipped weights to labelled images and a table of speeds."""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ..runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..export.cli import main as export
from ..models.zoo import zoo_entry
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.manifest import MANIFEST_FILE
from ..runtime.command.files import write_json
from ..runtime.command.parser import Parser, run_command
from ..runtime.errors import CsdError
from ..runtime.options import GenerateOptions
from .bench.baselines import check_baselines, eager_samplers
from .bench.cases import EAGER, Case, threads_in_words
from .bench.measure import Runners, measure
from .bench.report import make_report, results_table
from .console import progress_report, results_console
from .load import LoadMeter, idle_load
from .option_values import COUNT, THREADS
from .outputs import result_files

ZOO = "fashion-mnist"
ROWS = 4


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="python -m csd.tools.demo",
        description="Export the shipped pair, generate a labelled grid of images with csd, and "
        "compare PyTorch eager, target and csd.",
        example="python -m csd.tools.demo --out out",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="directory of all results")
    parser.add_argument("--repeats", type=COUNT, default=2, help="timed runs of each mode")
    parser.add_argument(
        "--threads",
        type=THREADS,
        default=2,
        help="CPU threads; eager is timed with one thread too, and ratios are of its best",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Export, generate, compare."""
    progress, idle = progress_report(), idle_load()
    check_baselines([EAGER], "cpu")
    picture_file, figures_file = result_files(args.out, ["demo.png", "demo.json"])
    folder = args.out / "bundle"
    if not (folder / MANIFEST_FILE).is_file():
        code = export(["--zoo", ZOO, "--out", str(folder)])
        if code:
            raise CsdError("the export failed: see the lines above")
    bundle, cfg = Bundle.open(folder), zoo_entry(ZOO).best_cfg
    names = bundle.manifest.class_names or ()
    speculative = GenerateOptions(mode="csd", cfg=cfg, head="auto")
    alone = GenerateOptions(mode="target", cfg=cfg, head="sequential")
    with bundle.session(threads=args.threads) as session:
        progress(f"generating {ROWS * len(names)} images with csd, guidance {cfg:g}")
        labels = [*range(len(names))] * ROWS
        made = session.generate(labels, speculative, seed=0)
        made.save(picture_file, columns=len(names), captions=True)
        counts = sorted({1, args.threads})
        runners = Runners(
            {args.threads: session}, eager_samplers(bundle, [EAGER], None, counts, "cpu")
        )
        cases = [
            *(Case(f"eager, {threads_in_words(n)}", alone, EAGER, n) for n in counts),
            Case("target", alone, threads=args.threads),
            Case("target, head auto", replace(alone, head="auto"), threads=args.threads),
            Case("csd, head auto", speculative, threads=args.threads),
        ]
        meter = LoadMeter()
        results = measure(runners, cases, batch=1, repeats=args.repeats, seed=1, report=progress)
        report = make_report(
            results, session,
            batch=1, repeats=args.repeats, warm_ups=1, seed=1, load=(idle, meter.read()),
            grid={"labels": labels, "seed": 0, **made.stats.to_dict()},
        )  # fmt: skip
    write_json(figures_file, report)
    console = results_console()
    console.print(results_table(report))
    console.print(f"images: {picture_file}   figures: {figures_file}", soft_wrap=True)
    return 0
