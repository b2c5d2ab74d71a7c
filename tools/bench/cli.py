"""`csd-bench`: how fast is each mode, and what does it cost in quality?"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import Manifest
from ...runtime.cli import (
    add_bundle_argument,
    add_decoding_arguments,
    check_effects,
    decoding_options,
    open_bundle,
    open_session,
)
from ...runtime.command.files import check_outputs, output_path, write_json, write_outputs
from ...runtime.command.line.completion import completes, some_of
from ...runtime.command.line.effects import refuse_without_effect
from ...runtime.command.parser import Parser, parse_list, run_command
from ...runtime.effects import OF_LISTS
from ...runtime.errors import CsdError, OptionError
from ...runtime.options import HEADS, GenerateOptions, parse_interval, parse_refresh
from ..console import Report, progress_report, results_console
from ..load import Load, LoadMeter, busy_warning, cores, idle_load
from ..machine import gpu_state
from ..option_values import COUNT, SEED, THREADS, real_number_reader, whole_number_reader
from ..plot_files import check_plot
from ..quality import ImageClassifier, bundle_classifier
from .baselines import check_baselines, eager_samplers, target_weights
from .cases import MODES, Case, Sweep, make_cases
from .effects import GUIDED, SWEEP
from .measure import Runners, measure, measure_quality
from .plots import plot_bench
from .report import make_report, results_table

DEFAULT_MODES = "eager,target,csd"
DEFAULT_GAMMAS = "4,8,16,32"
DEFAULT_THREADS = "1,2"


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-bench",
        description="Compare decoding modes with PyTorch eager: interleaved, warmed up, medians "
        "and percentiles, ratios. Also times the target at fewer AR steps, because that is what "
        "a faster mode has to beat, and says how busy the machine was with other things.",
        example="csd-bench bundle --modes eager,target,csd --gammas 8 --json bench.json",
        lower="--batch",
    )
    add_bundle_argument(parser)
    what = parser.group("what is measured")
    modes = what.add_argument("--modes", default=DEFAULT_MODES, help=f"of {', '.join(MODES)}")
    heads = what.add_argument(
        "--heads", default="auto", help=f"head samplers to compare, of {', '.join(HEADS)}"
    )
    completes(modes, some_of(MODES))
    completes(heads, some_of(HEADS))
    what.add_argument(
        "--gammas",
        default=DEFAULT_GAMMAS,
        help="gamma values of csd; of the default those that the bundle takes",
    )
    what.add_argument(
        "--refresh",
        default="1",
        help="which AR steps compute the whole backbone, as in 1,2,3,4 or 1,2:8,auto; the target "
        "at fewer AR steps is measured with all of them full",
    )
    what.add_argument(
        "--cfg-intervals",
        default="",
        metavar="A:B,...",
        help="as --cfg-interval has it, several, each measured too, with every --refresh "
        "(default: none)",
    )
    what.add_argument(
        "--temperatures",
        default="",
        help="inner temperatures to sweep at the first gamma, as in 1,8,42 (default: none)",
    )
    what.add_argument(
        "--fewer-steps",
        default="64,32,16,8",
        help="AR steps at which the target is measured too, where they are fewer; 0 = none",
    )
    what.add_argument(
        "--batch", type=whole_number_reader(1, 4096), default=1, help="images at once"
    )
    what.add_argument("--repeats", type=COUNT, default=5, help="timed runs of each mode")
    what.add_argument(
        "--warm-ups",
        type=whole_number_reader(0, 1000),
        default=1,
        help="runs before those that are timed",
    )
    what.add_argument("--seed", type=SEED, default=0, help="seed of the first run")
    what.add_argument(
        "--quality-images",
        type=whole_number_reader(0, 100_000),
        default=0,
        help="images behind the class accuracy of each mode, 0 = not measured",
    )
    torch = parser.group("PyTorch baselines")
    torch.add_argument(
        "--target-weights",
        type=Path,
        help="weights for eager (default: the zoo's, or the file of their name that lies here)",
    )
    torch.add_argument(
        "--eager-device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="of PyTorch; auto is where the backend runs",
    )
    output = parser.group("output")
    output.add_argument(
        "--json",
        type=output_path,
        metavar="FILE",
        help="also save the results, - for stdout (default: not saved)",
    )
    output.add_argument(
        "--plot",
        type=output_path,
        metavar="FILE.png",
        help="also draw them; .svg and .pdf too (default: not drawn)",
    )
    add_decoding_arguments(parser)
    parser.conflict_handler = "resolve"  # several thread counts, where generation takes one
    parser.add_argument_group("threads").add_argument(
        "--threads",
        default=DEFAULT_THREADS,
        help="CPU threads to compare; ratios are of eager at its best number of them",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `csd-bench`; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Measure what was asked for; what cannot be done is refused before anything is timed."""
    sweep, options = _sweep(args), decoding_options(args)
    inputs = {"the bundle": args.bundle}
    if args.target_weights is not None:
        inputs["the weights"] = args.target_weights
    check_outputs({"--json": args.json, "--plot": args.plot}, inputs)
    if args.plot is not None:
        check_plot(args.plot)
    bundle = open_bundle(args)
    progress = progress_report()
    sweep = _fitting(sweep, args, bundle.manifest)
    refuse_without_effect(args.given, SWEEP, [sweep])
    cases = _resolved_cases(sweep, options, bundle.manifest)
    refuse_without_effect(args.given, GUIDED, [case.options for case in cases])
    check_effects(args, [case.options for case in cases], OF_LISTS)
    with ExitStack() as opened:
        plan = _prepare(args, bundle, sweep, cases, options, opened)
        report = _measure(args, plan, progress)
    write_outputs((
        (args.json, lambda path: write_json(path, report)),
        (args.plot, lambda path: plot_bench(report, path)),
    ))  # fmt: skip
    results_console(args.json).print(results_table(report))
    return 0


def _sweep(args: argparse.Namespace) -> Sweep:
    """Read and check what is varied."""
    temperature = real_number_reader(0, 1e6, above=True)
    steps = parse_list("fewer-steps", args.fewer_steps, whole_number_reader(0, 1_000_000))
    return Sweep(
        modes=parse_list("modes", args.modes, str, known=MODES),
        heads=parse_list("heads", args.heads, str, known=HEADS),
        gammas=parse_list("gammas", args.gammas, whole_number_reader(1, 1_000_000)),
        refreshes=parse_list("refresh", args.refresh, parse_refresh),
        intervals=(
            parse_list("cfg-intervals", args.cfg_intervals, parse_interval)
            if args.cfg_intervals
            else []
        ),
        temperatures=(
            parse_list("temperatures", args.temperatures, temperature) if args.temperatures else []
        ),
        fewer_steps=[count for count in steps if count],
        threads=parse_list("threads", args.threads, THREADS),
    )


def _fitting(sweep: Sweep, args: argparse.Namespace, manifest: Manifest) -> Sweep:
    """Leave out of the defaults what a bundle cannot do."""
    if "gammas" not in args.given:
        fitting = [gamma for gamma in sweep.gammas if gamma <= manifest.max_gamma]
        sweep = dataclasses.replace(sweep, gammas=fitting or [1])
    solved = manifest.target.solved and sweep.heads == ["auto"]
    if ("draft" not in manifest.models or solved) and "modes" not in args.given:
        sweep = dataclasses.replace(sweep, modes=[mode for mode in sweep.modes if mode != "csd"])
    return sweep


def _resolved_cases(sweep: Sweep, options: GenerateOptions, manifest: Manifest) -> list[Case]:
    """The cases with all defaults filled in, each with its own head's steps."""
    defaults = manifest.target, manifest.head_steps
    num_iter = options.resolved(*defaults).num_iter
    assert num_iter is not None
    return [
        dataclasses.replace(case, options=case.options.resolved(*defaults))
        for case in make_cases(sweep, options, num_iter)
    ]


@dataclass(frozen=True)
class _Plan:
    """Everything that a bench needs, opened and checked.

    Attributes:
        cases: to measure.
        runners: of the cases.
        classifier: of the images, or None.
        eager_device: of PyTorch.
        idle: load of the machine before.
    """

    cases: list[Case]
    runners: Runners
    classifier: ImageClassifier | None
    eager_device: str
    idle: Load


def _prepare(
    args: argparse.Namespace,
    bundle: Bundle,
    sweep: Sweep,
    cases: list[Case],
    options: GenerateOptions,
    opened: ExitStack,
) -> _Plan:
    """Open sessions, baselines and classifier, and check that they can do what is asked."""
    idle = idle_load()
    resolved = options.resolved(bundle.manifest.target, bundle.manifest.head_steps)
    names, most = sweep.baselines, max(sweep.threads)
    if names and not isinstance(resolved.head_steps, int):
        raise OptionError(f"{names[0]} has no annealed head steps: leave {names[0]} out of --modes")
    check_baselines(names, args.eager_device)
    if names:
        target_weights(bundle, names, args.target_weights)
    classifier = bundle_classifier(bundle, most) if args.quality_images else None
    if args.quality_images and classifier is None:
        raise CsdError("class accuracy needs a zoo bundle: leave out --quality-images")

    def session(threads: int) -> Any:
        given = argparse.Namespace(**{**vars(args), "threads": threads})
        made = opened.enter_context(open_session(bundle, given))
        made.keep_backend()
        return made

    sessions = {most: session(most)}
    on_host = sessions[most].backend.name == "onnxruntime"
    device = args.eager_device
    if device == "auto":
        device = "cpu" if on_host else "cuda"
    # What runs on a device does not get faster by the host's threads.
    sweep = dataclasses.replace(
        sweep,
        threads=sweep.threads if on_host else [most],
        baseline_threads=sweep.threads if device == "cpu" else [most],
    )
    for case in cases:
        if not case.baseline:
            sessions[most].check([0], case.options)
    sessions |= {count: session(count) for count in sweep.threads if count != most}
    baselines = eager_samplers(
        bundle, names, args.target_weights, sweep.baseline_threads or (), device
    )
    return _Plan(cases, Runners(sessions, baselines), classifier, device, idle)


def _measure(args: argparse.Namespace, plan: _Plan, progress: Report) -> dict[str, Any]:
    most = max(case.threads for case in plan.cases)
    if warning := busy_warning(plan.idle, None, most, cores()):
        progress(f"warning: {warning}")
    before, meter = gpu_state(), LoadMeter()
    results = measure(
        plan.runners, plan.cases,
        batch=args.batch, repeats=args.repeats, warm_ups=args.warm_ups, seed=args.seed,
        report=progress,
    )  # fmt: skip
    load = plan.idle, meter.read()
    after = gpu_state()
    if plan.classifier is not None:
        measure_quality(
            plan.runners, plan.classifier, results,
            images=args.quality_images, seed=args.seed, report=progress,
        )  # fmt: skip
    return make_report(
        results, plan.runners.session,
        batch=args.batch, repeats=args.repeats, warm_ups=args.warm_ups, seed=args.seed, load=load,
        eager_device=plan.eager_device, gpu_before=before, gpu_after=after,
    )  # fmt: skip
