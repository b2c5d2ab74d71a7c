"""`csd-generate`: labels to images."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends import BACKENDS
from .bundle import offers
from .bundle.bundle import Bundle
from .bundle.manifest_checks import PRECISIONS
from .bundle.verification import POLICIES
from .command.files import (
    check_apart,
    check_outputs,
    check_outside,
    check_writable,
    is_stream,
    output_path,
    write_atomically,
    write_json,
)
from .command.frame import raise_if_stopped
from .command.line.completion import completes, one_of
from .command.line.effects import refuse_without_effect
from .command.parser import Group, Parser, report_stream, run_command
from .command.text import one_line
from .effects import MACHINE, PICTURES, Names, Pictures, decoding_effects
from .errors import OptionError
from .images import check_sheet, load_pillow
from .labels import class_name, read_labels
from .noise import SeededNoise
from .options import (
    ACCEPTANCES,
    HEADS,
    MODES,
    VERIFICATIONS,
    GenerateOptions,
    parse_head_steps,
    parse_interval,
    parse_refresh,
)
from .result import GenerateResult, image_names
from .schedule import GUIDANCE_SCHEDULES, MASK_SCHEDULES
from .session import Session
from .spread.arguments import add_spread_arguments, check_spread
from .stats import Progress, Stats

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


def add_decoding_arguments(parser: Parser, *, refresh: bool = True) -> None:
    """Add the options that say how images are decoded and where.

    Args:
        parser: of the command.
        refresh: whether it may have local AR steps.
    """
    defaults = GenerateOptions()
    decoding, head = parser.group("decoding"), parser.group("head")
    csd = parser.group("speculative decoding")
    csd.add_argument(
        "--verify",
        choices=VERIFICATIONS,
        default=defaults.verify,
        help="verify a whole block, or each drafted prefix",
    )
    csd.add_argument(
        "--acceptance",
        choices=ACCEPTANCES,
        default=defaults.acceptance,
        help="the paper's equations, or the released code's",
    )
    csd.add_argument(
        "--inner-temperature",
        type=float,
        default=defaults.inner_temperature,
        help="divides (x - mean)/std in the acceptance; 1 is the paper's formula",
    )
    csd.add_argument(
        "--prefill",
        type=float,
        default=defaults.prefill,
        help="share of AR steps that the target decodes first",
    )
    decoding.add_argument(
        "--num-iter",
        type=int,
        help="AR steps (default: the model's own number, as 64, at most the number of tokens)",
    )
    decoding.add_argument(
        "--mask-schedule",
        choices=MASK_SCHEDULES,
        help="sizes of the AR steps (default: the model's)",
    )
    head.add_argument(
        "--head-steps",
        metavar="N[:M]",
        help="head steps, annealed to M if given (default: the bundle's)",
    )
    head.add_argument(
        "--head-tolerance",
        type=float,
        default=defaults.head_tolerance,
        help="of the parallel sampler, as a share of each head step's std",
    )
    decoding.add_argument(
        "--cfg", type=float, default=defaults.cfg, help="guidance scale, 1 = none"
    )
    decoding.add_argument(
        "--cfg-schedule",
        choices=GUIDANCE_SCHEDULES,
        help="guidance over the AR steps (default: the model's)",
    )
    decoding.add_argument(
        "--cfg-interval",
        metavar="A:B",
        help="guidance only in AR steps after which more than A and at most B of them are left, as "
        "0.1:0.3; the others evaluate one branch (default: the model's; 0:1 is all)",
    )
    if refresh:
        decoding.add_argument(
            "--refresh-tolerance",
            type=float,
            default=defaults.refresh_tolerance,
            help="of --refresh auto: what local AR steps may displace the tokens of an image by, "
            "root mean square in units of the tokens",
        )
    head.add_argument(
        "--temperature", type=float, default=defaults.temperature, help="factor of the head's noise"
    )
    add_machine_arguments(parser)


def add_setting_arguments(parser: Parser, what: Group) -> None:
    """Add the options that have one value in a command that decodes in one setting.

    They come before those of `add_decoding_arguments`, as the help shows them.
    """
    defaults = GenerateOptions()
    what.add_argument(
        "--mode",
        choices=MODES,
        default=defaults.mode,
        help="target alone, draft alone, or speculative decoding",
    )
    add_preset_argument(what)
    parser.group("decoding").add_argument(
        "--refresh",
        default="1",
        metavar="N[:F]|auto",
        help="compute the whole backbone in every N-th AR step after the first F (4 where it is "
        "not given), and in the others new tokens and queries only; auto: in as many as keep a "
        "measured error near --refresh-tolerance",
    )
    parser.group("head").add_argument(
        "--head",
        choices=HEADS,
        default=defaults.head,
        help="head sampler; speculative keeps the law, parallel the sample, solver is for models "
        "exported for it",
    )
    parser.group("speculative decoding").add_argument(
        "--gamma", type=int, default=defaults.gamma, help="AR steps drafted before one verification"
    )


def setting_of(args: argparse.Namespace) -> GenerateOptions:
    """Return the options that `add_setting_arguments` and `add_decoding_arguments` parsed."""
    return decoding_options(
        args, mode=args.mode, gamma=args.gamma, head=args.head, refresh=parse_refresh(args.refresh)
    )


def add_machine_arguments(parser: Parser) -> None:
    """Add the options that say where a bundle runs, which `open_session` takes."""
    machine = parser.group("machine")
    machine.add_argument("--threads", type=int, default=2, help="CPU threads")
    backend = machine.add_argument(
        "--backend", default="auto", help=f"auto or one of {', '.join(BACKENDS)}"
    )
    completes(backend, one_of(("auto", *BACKENDS)))
    machine.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of engines or graphs (default: the fastest engines there are, or float32 graphs)",
    )
    machine.add_argument(
        "--memory-limit",
        type=int,
        metavar="MB",
        help="device memory that engines may take (default: no limit)",
    )
    machine.add_argument(
        "--no-cuda-graph",
        action="store_true",
        help="do not record repeated calls of engines (default: they are recorded)",
    )
    add_verify_argument(machine)


def add_verify_argument(group: Group) -> None:
    """Add the options that say whether a bundle's files are those that were exported."""
    group.add_argument(
        "--verify-files",
        choices=POLICIES,
        default="once",
        help="compare the SHA-256 of files before they are loaded: each time, once for a file "
        "that does not change, or never",
    )
    group.add_argument(
        "--require-signature",
        type=Path,
        metavar="KEY.pub",
        help="open the bundle only if the owner of this Ed25519 key signed it, and compare the "
        "SHA-256 of files each time (default: no signature is asked for)",
    )


def open_bundle(args: argparse.Namespace) -> Bundle:
    """Open `args.bundle` as `add_verify_argument` parsed.

    Raises:
        BundleError: what is wrong with it.
        OptionError: the key cannot be read.
    """
    return Bundle.open(
        args.bundle, verify_files=args.verify_files, require_signature=args.require_signature
    )


def add_preset_argument(group: Group) -> None:
    """Add the option that takes options from the bundle."""
    preset = group.add_argument(
        "--preset",
        metavar="NAME",
        help="decode as csd-eval tune found to be as good and faster, as in tuned; other options "
        "that are given count besides",
    )
    completes(preset, offers.presets)


def with_preset(
    bundle: Bundle, args: argparse.Namespace, options: GenerateOptions
) -> tuple[argparse.Namespace, GenerateOptions]:
    """Return arguments and options with those of the preset that was asked for, if one was.

    Raises:
        OptionError: the bundle has no such preset, or what is given besides does not go with it.
    """
    if args.preset is None:
        return args, options
    preset = bundle.preset(args.preset)
    precision = preset.precision if args.precision is None else args.precision
    changed = argparse.Namespace(**{**vars(args), "precision": precision})
    return changed, preset.with_given(options, args.given)


def add_bundle_argument(parser: Parser) -> None:
    """Add the argument that names the bundle."""
    folder = parser.add_argument("bundle", type=Path, help="directory that csd-export wrote")
    completes(folder, offers.bundles)


def check_effects(
    args: argparse.Namespace, runs: Iterable[GenerateOptions], names: Names | None = None
) -> None:
    """Refuse options of decoding and of the machine that were given and change nothing.

    Args:
        args: what was parsed.
        runs: all that will be run, with all defaults filled in.
        names: how the command calls the options that others hang on.

    Raises:
        OptionError: see `refuse_without_effect`.
    """
    refuse_without_effect(args.given, decoding_effects(names or Names()), runs)
    refuse_without_effect(args.given, MACHINE, [args.backend])


def open_session(bundle: Bundle, args: argparse.Namespace) -> Session:
    """Open a session with the backend that `add_machine_arguments` parsed."""
    return bundle.session(
        args.backend, args.threads, precision=args.precision, memory_limit=args.memory_limit,
        cuda_graph=not args.no_cuda_graph,
    )  # fmt: skip


def decoding_options(args: argparse.Namespace, **changes: Any) -> GenerateOptions:
    """Return the options that `add_decoding_arguments` parsed, with `changes`."""
    values: dict[str, Any] = {
        "verify": args.verify,
        "acceptance": args.acceptance,
        "inner_temperature": args.inner_temperature,
        "prefill": args.prefill,
        "num_iter": args.num_iter,
        "head_steps": None if args.head_steps is None else parse_head_steps(args.head_steps),
        "cfg": args.cfg,
        "mask_schedule": args.mask_schedule,
        "cfg_schedule": args.cfg_schedule,
        "cfg_interval": None if args.cfg_interval is None else parse_interval(args.cfg_interval),
        "temperature": args.temperature,
        "head_tolerance": args.head_tolerance,
    }
    if "refresh_tolerance" in args:
        values["refresh_tolerance"] = args.refresh_tolerance
    return GenerateOptions(**{**values, **changes})


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-generate",
        description="Generate images from a bundle, without PyTorch.",
        example="csd-generate bundle --labels 3,7,9 --cfg 3 --out grid.png",
        lower="the number of --labels",
    )
    add_bundle_argument(parser)
    what = parser.group("what to generate")
    labels = what.add_argument(
        "--labels",
        required=True,
        help="classes to generate, by index or name, as in 3,7,9, or all",
    )
    completes(labels, offers.class_names)
    what.add_argument("--seed", type=int, default=0, help="one seed gives one set of images")
    add_setting_arguments(parser, what)
    output = parser.group("output")
    output.add_argument(
        "--out",
        type=output_path,
        help="PNG of all images: one as it is, several in a grid, small ones enlarged; - is "
        "stdout, here and below (default: grid.png, or none with --out-dir)",
    )
    output.add_argument(
        "--out-dir",
        type=Path,
        metavar="DIR",
        help="a PNG for each image at its true size, as DIR/000-bag.png (default: none)",
    )
    output.add_argument(
        "--captions",
        action="store_true",
        help="write each image's class under it (default: nothing is written)",
    )
    output.add_argument(
        "--columns", type=int, help="images in a row at most (default: about square)"
    )
    output.add_argument(
        "--save-latents",
        type=output_path,
        metavar="FILE.npy",
        help="also save latents, float32 [B, c, h, w] (default: they are not saved)",
    )
    output.add_argument(
        "--stats",
        type=output_path,
        metavar="FILE.json",
        help="also save times, counts and versions (default: they are not saved)",
    )
    output.add_argument(
        "--quiet", action="store_true", help="no progress bar (default: there is one)"
    )
    add_decoding_arguments(parser)
    add_spread_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `csd-generate`; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Generate what was asked for."""
    options = setting_of(args)
    check_spread(args)
    if args.columns is not None and args.columns < 1:
        raise OptionError(f"columns is {args.columns}: give at least 1")
    out = Path("grid.png") if args.out is None and args.out_dir is None else args.out
    SeededNoise(args.seed)  # refuses a seed that is out of range
    inputs = {"the bundle": args.bundle}
    outputs = {"--out": out, "--save-latents": args.save_latents, "--stats": args.stats}
    check_outputs(outputs, inputs)
    if args.out_dir is not None:
        check_outside("--out-dir", args.out_dir, inputs)
        check_folder(args.out_dir)
    bundle = open_bundle(args)
    args, options = with_preset(bundle, args, options)
    labels = read_labels(args.labels, bundle.manifest.target.class_num, bundle.manifest.class_names)
    if args.out_dir is not None:
        captions = [class_name(label, bundle.manifest.class_names) for label in labels]
        check_apart("--out-dir", args.out_dir, image_names(captions), outputs)
    options = options.resolved(bundle.manifest.target, bundle.manifest.head_steps)
    check_effects(args, [options])
    has_images = bundle.manifest.makes_images
    if not has_images and args.save_latents is None:
        raise OptionError(
            f"bundle {args.bundle} has no decoder and makes latents only: give --save-latents "
            "FILE, or export with --decoder"
        )
    refuse_without_effect(args.given, PICTURES, [Pictures(has_images, sheet=out is not None)])
    if has_images:
        load_pillow()
        check_sheet(len(labels), args.columns, bundle.manifest.target.img_size)
    result = _generate(bundle, args, labels, options)
    writes: list[tuple[Path, Callable[[Path], None]]] = []
    if has_images and out is not None:
        writes.append((out, lambda path: result.save(path, args.columns, captions=args.captions)))
    if args.save_latents is not None:
        writes.append((args.save_latents, lambda path: _save_latents(path, result)))
    if args.stats is not None:
        writes.append((args.stats, lambda path: write_json(path, result.to_dict())))
    # The reader of a pipe may go away, which must cost no file; nor must one of many images that
    # cannot be written cost the rest.
    streams = [item for item in writes if is_stream(item[0])]
    for path, write in (item for item in writes if item not in streams):
        write(path)
    if has_images and args.out_dir is not None:
        result.save_each(args.out_dir, captions=args.captions)
    for path, write in streams:
        write(path)
    made = (out or args.out_dir) if has_images else args.save_latents
    print(one_line(_summary(result, made)), file=report_stream(*(path for path, _ in writes)))
    return 0


def _save_latents(path: Path, result: GenerateResult) -> None:
    with write_atomically(path) as stream:
        np.save(stream, result.latents)


def check_folder(folder: Path) -> None:
    """Check that files can be written in a folder that is there, or that it can be made.

    Raises:
        OSError: neither.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    try:
        check_writable(folder / "image" if folder.is_dir() else folder)
    except OSError as error:
        error.filename = str(folder)  # the name that the user gave
        raise


def _generate(
    bundle: Bundle, args: argparse.Namespace, labels: list[int], options: GenerateOptions
) -> GenerateResult:
    """Generate here, or on the cluster that `--ray` names."""
    with open_session(bundle, args) as session:
        # Before the bar is drawn, so that an error is the only line.
        wanted = session.check(labels, options)
        if args.ray is None:
            return _generate_with_bar(session, labels, options, args.seed, args.quiet)
        from .spread.generate import generate_spread, pieces_of
        from .spread.job import Spread

        spread = Spread.of(bundle, session, args)
    # The session is closed: what it took of a device is the workers'.
    pieces = pieces_of(wanted.tolist(), options, args.seed, bundle.manifest.max_batch)
    with spread.workers(len(pieces)) as (pool, _), _bar(args.quiet) as bar:
        task = bar.add_task("images", total=len(labels), rate="")
        return generate_spread(pool, pieces, lambda done, _: bar.update(task, completed=done))


def _generate_with_bar(
    session: Session, labels: list[int], options: GenerateOptions, seed: int, quiet: bool
) -> GenerateResult:
    with _bar(quiet, "AR step ") as bar:
        task = bar.add_task(options.mode, total=None, rate="")

        def show(progress: Progress) -> None:
            raise_if_stopped()
            bar.update(task, completed=progress.done, total=progress.total, rate=_figures(progress))

        return session.generate(labels, options, seed=seed, progress=show)


def _bar(quiet: bool, unit: str = "") -> Bar:
    """A progress bar on stderr, of tasks with a field `rate`: what is said besides."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(),
        TextColumn(unit + "{task.completed}/{task.total}"), TimeElapsedColumn(),
        TextColumn("{task.fields[rate]}"),
        console=Console(stderr=True), disable=quiet,
    )  # fmt: skip


def _figures(progress: Progress) -> str:
    """What a progress bar says besides how far a run is."""
    figures: list[str] = []
    if progress.drafted:
        figures.append(f"acceptance {progress.accepted / progress.drafted:.1%}")
    if progress.local:
        figures.append(f"{progress.local} local")
    if progress.error is not None:
        figures.append(f"error {progress.error:.3f}")
    return ", ".join(figures)


def _local_summary(stats: Stats) -> str:
    """What local AR steps were of a run, or nothing."""
    local = sum(stats.local_steps.values())
    if not local:
        return ""
    error = stats.largest_error
    measured = "" if error is None else f", error {error:.3f}"
    share = f"{stats.backbone_rows_share:.0%} of the backbone's rows"
    return f", {local} local steps, {share}{measured}"


def _summary(result: GenerateResult, out: Path | None) -> str:
    stats = result.stats
    rate = stats.acceptance_rate
    accepted = "" if rate is None else f", acceptance rate {rate:.1%}"
    accepted += _local_summary(stats)
    count = len(result.images)
    return (
        f"{count} image{'s' if count > 1 else ''} in {stats.seconds:.2f} s "
        f"({stats.seconds / count:.2f} s an image){accepted}: {out}"
    )
